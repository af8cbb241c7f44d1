"""Files that are there as a whole or not at all: weights as safetensors, and a JSON card beside them."""
import hashlib
import json
import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor


def _paths(path: str | Path) -> tuple[Path, Path]:
    path = Path(path)
    stem = path.with_suffix("") if path.suffix in (".safetensors", ".json") else path
    return stem.with_name(stem.name + ".safetensors"), stem.with_name(stem.name + ".json")


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is there as a whole or not at all: a temporary file, then a rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def save_files(path: str | Path, state: dict[str, Tensor], card: dict) -> None:
    """Weights as safetensors, and beside them a JSON card with their SHA-256."""
    weights_path, card_path = _paths(path)
    weights = save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})
    text = json.dumps({**card, "sha256": hashlib.sha256(weights).hexdigest()}, indent=1) + "\n"
    write_whole(weights_path, weights)
    write_whole(card_path, text.encode())


def load_files(path: str | Path, expected: str) -> tuple[dict[str, Tensor], dict]:
    """The weights and the card that `save_files` wrote, checked for being whole and of the `expected` format."""
    weights_path, card_path = _paths(path)
    for file in (weights_path, card_path):
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing; a saved model is a .safetensors file and a .json card")
    try:
        card = json.loads(card_path.read_text())
    except ValueError as error:
        raise ValueError(f"{card_path} is no JSON card: {error}") from None
    if not isinstance(card, dict) or card.get("format") != expected:
        found = card.get("format") if isinstance(card, dict) else type(card).__name__
        raise ValueError(f"{card_path} describes {found!r}, expected {expected!r}")
    if hashlib.sha256(weights_path.read_bytes()).hexdigest() != card.get("sha256"):
        raise ValueError(f"{weights_path} is not the file its card describes (SHA-256 differs): "
                         "it was cut short or replaced; make or fetch it again")
    try:
        return load_file(weights_path), card
    except SafetensorError as error:
        raise ValueError(f"{weights_path} is no safetensors file: {error}") from None
