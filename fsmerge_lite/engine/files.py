"""Files: written as a whole or not at all, read only if they are what was written.

A saved model is one safetensors file: the weights, and in its metadata a JSON card that says what they are.
"""
import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from . import given
from .processes import is_main


def fingerprint(tensors: Mapping[str, Tensor], card: str = "") -> str:
    """SHA-256 of tensors with their names, types and shapes, and of a text: equal only where all of it is equal."""
    digest = hashlib.sha256(card.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_of(path: str | Path) -> Path:
    """`path` with the ending .safetensors."""
    path = Path(path)
    return path if path.suffix == ".safetensors" else path.with_name(path.name + ".safetensors")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Meanwhile, an OSError says which file it is that cannot be written."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path} cannot be written ({error.strerror or error}); give another path") from error


def check_writable(path: Path) -> None:
    """Refuse a file that could not be written later on. Raises OSError, which names it. Nothing is made."""
    place = next(folder for folder in path.absolute().parents if folder.exists())
    with naming(path):
        if path.is_dir():
            raise OSError("it is a folder")
        trial = place / f".{os.getpid()}.trial"
        trial.write_bytes(b"")
        trial.unlink()


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there as a whole or not at all: a temporary file, then a rename. By process 0 only."""
    if not is_main():
        return
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(data)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


def save_file(path: str | Path, state: Mapping[str, Tensor], card: dict, more: Mapping[str, object] | None = None
              ) -> None:
    """Write weights and card as one safetensors file, with the SHA-256 of both in its metadata.

    Raises ValueError for weights that are not finite, and entries in `more` that the card has already; TypeError for
    what JSON has no words for.
    """
    taken = sorted(card.keys() & (more or {}))
    if taken:
        raise ValueError(f"the card of a saved model has {', '.join(taken)} already; give other names of entries")
    for name, tensor in state.items():
        given.finite(tensor, name)
    # Every tensor gets memory of its own, as safetensors asks for.
    tensors = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in state.items()}
    try:
        text = json.dumps({**card, **(more or {})})
    except TypeError as error:
        raise TypeError(f"a card holds plain values alone, as JSON does, but got {more or card}: {error}") from None
    write_whole(file_of(path), save(tensors, {"card": text, "sha256": fingerprint(tensors, text)}))


def load_file(path: str | Path, expected: str, entries: Collection[str] = ()) -> tuple[dict[str, Tensor], dict]:
    """The weights and the card that `save_file` wrote. Also reads version 0.1: the card is a JSON file beside it.

    Raises FileNotFoundError, or ValueError for a file that is not whole, not of the `expected` format, or whose card
    lacks one of these `entries`.
    """
    file = file_of(path)
    if not file.is_file():
        other = f", which {path} is not" if Path(path).is_file() else ""
        raise FileNotFoundError(f"{file} is missing; a saved model is one .safetensors file{other}")
    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{file} is no safetensors file, or it was cut short ({error}); "
                         "make or fetch it again") from None
    beside = file.with_suffix(".json")
    if "card" not in metadata and not beside.is_file():
        raise ValueError(f"{file} has no card: it was not saved by fsmerge_lite")
    try:
        card = dict(json.loads(metadata.get("card") or beside.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"the card of {file} is no JSON card: {error}") from None
    if card.get("format") != expected:
        raise ValueError(f"{file} holds {card.get('format')!r}, expected {expected!r}")
    if "card" in metadata:
        whole = fingerprint(state, metadata["card"]) == metadata.get("sha256")
    else:
        whole = hashlib.sha256(file.read_bytes()).hexdigest() == card.pop("sha256", None)
    if not whole:
        raise ValueError(f"{file} is not what was saved (SHA-256 differs): it was changed; make or fetch it again")
    lacking = [entry for entry in entries if entry not in card]
    if lacking:
        raise ValueError(f"the card of {file} lacks {', '.join(lacking)}; save the model again")
    return state, card


def load_state(model: nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
    """Load weights strictly, in the dtype they were saved in. Raises ValueError for weights that do not fit."""
    try:
        model.to(next(iter(state.values())).dtype).load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the weights at {path} do not fit the architecture in their card: {error}") from None
