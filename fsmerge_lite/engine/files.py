"""Files: written as a whole or not at all, read only if they are what was written.

A saved model is one safetensors file: the weights, and in its metadata a JSON card that says what they are.
"""
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

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


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there as a whole or not at all: a temporary file, then a rename. By process 0 only."""
    if not is_main():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def save_file(path: str | Path, state: Mapping[str, Tensor], card: dict) -> None:
    """Write weights and card as one safetensors file, with the SHA-256 of both in its metadata."""
    # Every tensor gets memory of its own, as safetensors asks for.
    tensors = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in state.items()}
    text = json.dumps(card)
    write_whole(file_of(path), save(tensors, {"card": text, "sha256": fingerprint(tensors, text)}))


def load_file(path: str | Path, expected: str) -> tuple[dict[str, Tensor], dict]:
    """The weights and the card that `save_file` wrote. Also reads version 0.1: the card is a JSON file beside it.

    Raises FileNotFoundError, or ValueError for a file that is not whole, or not of the `expected` format.
    """
    file = file_of(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing; a saved model is one .safetensors file")
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
    return state, card


def load_state(model: nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
    """Load weights strictly, in the dtype they were saved in. Raises ValueError for weights that do not fit."""
    try:
        model.to(next(iter(state.values())).dtype).load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the weights at {path} do not fit the architecture in their card: {error}") from None
