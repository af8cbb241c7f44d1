"""What the tests of bad input share: small models, tasks and files, and what a refusal must be like."""
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import fsmerge_lite as fsm
from fsmerge_lite.engine.files import fingerprint
from fsmerge_lite.engine.files import save_file as save_with_card
from fsmerge_lite.tasks.originals import recipe

NAN, INF = float("nan"), float("inf")
KINDS = (ValueError, TypeError, OSError, ArithmeticError, ModuleNotFoundError)
# Words of torch and Python that tell a user nothing.
INTERNAL = re.compile(r"INTERNAL ASSERT|mat1 and mat2|stack expects|has no attribute|object is not (iterable|callable)"
                      r"|not supported between|positional argument|meta tensor|must match the size|NoneType'$"
                      r"|divide by zero|division|split_size|state_dict")


class Warned(str):
    """Words of a warning, where nothing is refused."""


def made(name: str, classes: int = 2, size: int = 16, channels: int = 3, scale: float = 1.0, n: int = 8) -> fsm.Task:
    """A task of `n` random pictures."""
    x = (torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(classes)) * 2 - 1) * scale
    y = torch.arange(n) % classes
    return fsm.Task(name, tuple("abcdefgh"[:classes]), lambda n, g, split: (x[:n], y[:n]), size, n, n, channels)


def model(**options) -> nn.Module:
    return fsm.vit(**{"dim": 8, "depth": 1, "num_heads": 2, "patch_size": 8, "img_size": 16} | options).eval()


def original(task: fsm.Task | None = None, classes: int = 2, name: str = "", **options) -> fsm.Original:
    backbone = model(**options)
    return fsm.Original(backbone, nn.Linear(backbone.embed_dim, classes), name, task).eval()


def changed(each: nn.Module, change: Callable[[nn.Module], object]) -> nn.Module:
    """The module after a change in place."""
    change(each)
    return each


def with_nan(each: nn.Module) -> nn.Module:
    next(each.parameters()).data.view(-1)[0] = float("nan")
    return each


class Given:
    """Two originals of two tasks, what is made of them, and a folder of files, some of them broken."""

    def __init__(self, folder: Path):
        torch.manual_seed(0)
        self.folder, self.one, self.two = folder, made("one"), made("two", 3)
        self.a, self.b = self.pair = [original(self.one, 2, "one"), original(self.two, 3, "two")]
        self.images, self.other = fsm.calibration(self.pair, 4, 0), fsm.calibration([self.two, self.one], 4, 0)
        self.net, self.merged, self.recipe = fsm.SuperNet(self.pair, rank=2), fsm.average(self.pair), recipe()
        self.a.save(folder / "original")
        self.merged.save(folder / "merged")
        self.net.save(folder / "net")
        fsm.train_global(fsm.SuperNet(self.pair, rank=2), self.images, 1, checkpoint=folder / "run")
        whole = (folder / "merged.safetensors").read_bytes()
        for name, data in {"cut": whole[:-9], "empty": b"", "text": b"no model", "edited": whole[:-1] + b"\7",
                           "card": whole.replace(b'\\"kind\\": \\"vit\\"', b'\\"kind\\": \\"vat\\"')}.items():
            (folder / f"{name}.safetensors").write_bytes(data)
        (folder / "file").write_text("a file, where a folder was expected")
        (folder / "run.pt").write_bytes(b"no checkpoint")
        (folder / "taken.safetensors").mkdir()
        save_file({"x": torch.zeros(1)}, folder / "foreign.safetensors")
        save_with_card(folder / "lacks", {"x": torch.zeros(1)}, {"format": "fsmerge_lite.Merged"})
        self.pictures()

    def pictures(self) -> None:
        """Folders of pictures: good, with a broken one, with none."""
        for name in ("good", "broken", "bytes", "notes", "three"):
            for i, each in enumerate(("cat", "dog", "owl") if name == "three" else ("cat", "dog")):
                (self.folder / name / each).mkdir(parents=True)
                for j in range(5):
                    Image.new("RGB", (16, 16), (60 * i, 40 * j, 0)).save(self.folder / name / each / f"{j}.png")
        for each in ("cat", "dog"):
            (self.folder / "broken" / each / "3.jpg").write_text("a text")
        (self.folder / "bytes" / "cat" / "9.png").write_bytes(
            (self.folder / "good" / "cat" / "1.png").read_bytes()[:40])
        for name in ("a.txt", "b.heic"):
            (self.folder / "notes" / "cat" / name).write_text("no picture")
        (self.folder / "nothing").mkdir()

    def state(self) -> tuple[str, dict[str, bytes]]:
        """All that a refusal must leave as it is: the SuperNet, and the files."""
        files = {str(path): path.read_bytes() for path in sorted(self.folder.rglob("*")) if path.is_file()}
        return fingerprint(self.net.state_dict()), files


def helps(text: str, words: str) -> None:
    """Assert that a message has these words, and none of the inside of torch or Python."""
    assert words in text, text
    assert not INTERNAL.search(text), text


def refused(call: Callable[[], object], words: str, g: Given, here: Path) -> None:
    """Assert that a call is refused, or warned of, in these words, and leaves everything as it was."""
    before = g.state()
    if isinstance(words, Warned):
        with pytest.warns(UserWarning, match=re.escape(words)):
            call()
    else:
        with pytest.raises(KINDS) as error:
            call()
        helps(str(error.value), words)
    assert not list(here.rglob("*")) and g.state() == before
