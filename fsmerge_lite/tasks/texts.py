"""Tasks of texts: names from Unicode's CLDR, which Babel brings along, and text files of your own.

A text is a row of token ids: `START`, its bytes in UTF-8, each plus `BYTE`, and `PAD` up to the end of the row.
"""
import functools
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..architectures.text import PAD
from ..engine import given
from .drawing import extra
from .folders import some
from .task import Task, pick

START, BYTE = 1, 2
VOCABULARY = BYTE + 256
LENGTH = 32  # tokens of a text, where no other length is asked for
TESTED = 1000  # test texts of an embedded task

# All in Latin script. Names in the languages of the second list are never seen in training.
LANGUAGES = ("cs", "de", "en", "es", "fi", "fr", "hu", "id", "it", "nl", "pl", "pt", "ro", "sv", "tr", "vi")
UNSEEN = ("af", "ca", "da", "et", "gl", "hr", "ms", "sk")
KINDS = ("city", "currency", "language", "script", "territory")
TEXTS = {"language": LANGUAGES, "kind": KINDS}  # the embedded tasks and their classes


def encode(texts: Sequence[str], length: int = LENGTH) -> Tensor:
    """The token ids (n, length) of texts. Raises ValueError for an empty text, and for one that is too long."""
    rows = []
    for text in given.several("texts", texts):
        given.text(text=text)
        ids = [START, *(BYTE + byte for byte in text.encode())]
        if not 1 < len(ids) <= length:
            raise ValueError(f"a text must have 1 to {length - 1} bytes in UTF-8, got {len(ids) - 1}: {text[:40]!r}")
        rows.append(ids + [PAD] * (length - len(ids)))
    return torch.tensor(rows, dtype=torch.int64).view(-1, length)


def decode(ids: Tensor) -> list[str]:
    """The texts of token ids (n, length). What is no UTF-8 becomes U+FFFD."""
    return [bytes(token - BYTE for token in row if token >= BYTE).decode(errors="replace") for row in ids.tolist()]


def edited(ids: Tensor, generator: torch.Generator | None = None, chance: float = 0.1) -> Tensor:
    """Copies of texts (n, length), of which each byte is left out or replaced, with half of `chance` each.

    What stands in its place is a byte of another of the texts.
    """
    luck, others = torch.rand(ids.shape, generator=generator), ids[torch.randperm(len(ids), generator=generator)]
    is_byte = ids >= BYTE
    ids = torch.where(is_byte & (others >= BYTE) & (luck < chance / 2), others, ids)
    left_out = is_byte & (luck > 1 - chance / 2)
    order = left_out.sort(dim=1, stable=True).indices  # what is left moves up
    return ids.masked_fill(left_out, PAD).gather(1, order)


# ---------------------------------------------------------------- names from CLDR

@functools.cache
def names(language: str) -> tuple[tuple[str, str, str], ...]:
    """(kind, key, name) of all that CLDR names in a language, such as ("territory", "AT", "Österreich")."""
    locale = extra("babel", "the names in many languages").Locale(language)
    cities = {zone: known["city"] for zone, known in locale.time_zones.items() if "city" in known}
    tables = {"city": cities, "currency": locale.currencies, "language": locale.languages, "script": locale.scripts,
              "territory": locale.territories}
    return tuple((kind, key, name) for kind, table in tables.items() for key, name in sorted(table.items()))


def held_out(kind: str, key: str) -> bool:
    """Whether what this key stands for is left out of training, in all languages and for both tasks: a quarter is."""
    return zlib.crc32(f"{kind}/{key}".encode()) % 4 == 0


@functools.cache
def examples(name: str, length: int = LENGTH) -> dict[str, dict[str, str]]:
    """The texts of an embedded task with their labels, by split; no test text is a training text of either task.

    Both train on names in `LANGUAGES`. "language" is tested on names of other things in these languages, "kind" on
    names in the `UNSEEN` ones. A name that several languages share has no language, one of several kinds no kind.
    """
    rows = [(language, *row) for language in LANGUAGES + UNSEEN for row in names(language)
            if len(row[-1].encode()) < length]
    seen = {text for language, kind, key, text in rows if language in LANGUAGES and not held_out(kind, key)}
    labels, tested = defaultdict(set), set()
    for language, kind, _, text in rows:
        known = language in LANGUAGES
        if name == "kind" or known:
            labels[text].add(kind if name == "kind" else language)
        if text not in seen and known == (name == "language"):
            tested.add(text)
    one = {text: label for text, (label, *more) in labels.items() if not more}
    return {split: {text: one[text] for text in sorted(texts & one.keys())}
            for split, texts in (("train", seen), ("test", tested))}


@functools.cache
def named_task(name: str, length: int = LENGTH) -> Task:
    """The embedded task "language" or "kind"."""
    data = {}
    for split, found in examples(name, length).items():
        labels = [TEXTS[name].index(label) for label in found.values()]
        data[split] = encode(list(found), length), torch.tensor(labels)
    return _task(name, TEXTS[name], data, TESTED)


Data = dict[str, tuple[Tensor, Tensor]]  # token ids and labels by split


@dataclass(frozen=True, eq=False)
class _Texts:
    """Token ids and labels by split, to draw from."""

    name: str
    data: Data

    def draw(self, n: int, generator: torch.Generator, split: str) -> tuple[Tensor, Tensor]:
        ids, labels = self.data[split]
        return pick(n, 0, len(ids), generator, f"{self.name} ({split})", lambda rows: (ids[rows], labels[rows]))


def _task(name: str, classes: Sequence[str], data: Data, test_size: int) -> Task:
    train, test = (data[split][0] for split in ("train", "test"))
    return Task(name, tuple(classes), _Texts(name, data).draw, train.shape[1], min(test_size, len(test)), len(train),
                channels=0)


# ---------------------------------------------------------------- text files

Tokenize = Callable[[list[str]], Tensor]  # texts -> token ids (n, T)


def text_task(path: str | Path, length: int = LENGTH, name: str | None = None, test_size: int = 1000,
              classes: Sequence[str] | None = None, tokenize: Tokenize | None = None) -> Task:
    """A task of text files, one text a line: `path`/train/CLASS.txt and `path`/test/CLASS.txt, in UTF-8.

    Args:
        path: the folder.
        length: tokens of a text, >= 2; shorter ones are padded.
        name: what tables call it; the folder's name by default.
        test_size: at most so many test texts are scored, drawn at random, always the same ones, >= 1.
        classes: the names of the classes in the order of the head's outputs; None sorts them.
        tokenize: makes token ids (n, length) of n texts, in torch.int64 with 0 for padding, such as a tokenizer of your
            own does; None: bytes, as `encode` does.

    Raises:
        FileNotFoundError: no such folder, or no text files in it.
        ValueError: train and test of other classes, a class without texts, a text that is in both, or is too long; a
            file that is not UTF-8; token ids that are none.
    """
    path, name = Path(path), name or Path(path).resolve().name
    given.whole(2, length=length)
    given.whole(1, test_size=test_size)
    given.text(name=name)
    parts = {split: _lines(path / split) for split in ("train", "test")}
    known = sorted(parts["train"]) if classes is None else given.distinct("classes", classes)
    for split, found in parts.items():
        if sorted(found) != sorted(known):
            raise ValueError(f"{path / split} has the classes {', '.join(found)}; expected {', '.join(known)}")
    both = set().union(*parts["train"].values()) & set().union(*parts["test"].values())
    if both:
        raise ValueError(f"{len(both)} texts are in both {path / 'train'} and {path / 'test'}: {some(sorted(both))}; "
                         "keep each in one of them")
    read = tokenize or functools.partial(encode, length=length)
    data = {split: _with_labels(found, known, read, length) for split, found in parts.items()}
    return _task(name, known, data, test_size)


def _lines(folder: Path) -> dict[str, list[str]]:
    """The texts of every class, in the order of the lines; a text that comes twice counts once."""
    files = sorted(folder.glob("*.txt"))
    if not files:
        raise FileNotFoundError(f"there are no text files in {folder}; expected {folder}/CLASS.txt, one text a line")
    try:
        lines = {file.stem: file.read_text(encoding="utf-8").splitlines() for file in files}
    except UnicodeDecodeError as error:
        raise ValueError(f"a text file in {folder} is not UTF-8 ({error}); save it as UTF-8") from None
    texts = {label: list(dict.fromkeys(filter(None, map(str.strip, found)))) for label, found in lines.items()}
    empty = [label for label, found in texts.items() if not found]
    if empty:
        raise ValueError(f"{folder} has no texts of {some(empty)}")
    return texts


def _with_labels(found: dict[str, list[str]], classes: Sequence[str], read: Tokenize, length: int
                 ) -> tuple[Tensor, Tensor]:
    """Token ids (n, length) and labels (n,)."""
    pairs = [(text, label) for label, each in enumerate(classes) for text in found[each]]
    ids = read([text for text, _ in pairs])
    if not isinstance(ids, Tensor) or ids.dtype != torch.int64 or ids.shape != (len(pairs), length):
        kind = f"{ids.dtype} {tuple(ids.shape)}" if isinstance(ids, Tensor) else f"a {type(ids).__name__}"
        raise ValueError(f"the tokenizer gave {kind}, expected token ids {(len(pairs), length)} in torch.int64")
    return ids, torch.tensor([label for _, label in pairs])
