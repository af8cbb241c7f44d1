"""Pictures as Pillow opens them, made into RGB or grey, and into tensors in [-1, 1]."""
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import v2

NUMBERS = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")  # Pillow's grey modes of more than 8 bits


def open_picture(source: Path | Image.Image, channels: int) -> Image.Image:
    """A picture in RGB, or in L for one channel, turned as its EXIF says; what is transparent is put on white.

    In grey of 16 bits 65535 is white. In whole numbers of 32 bits it is 255, 65535 or their own maximum, the first of
    these that none of them exceeds. In floats it is 1, or their maximum where that is larger.

    Raises OSError or what else Pillow raises for a file that it cannot read, ValueError for numbers below zero or NaN.
    """
    if isinstance(source, Path):
        with Image.open(source) as picture:
            return open_picture(picture, channels)
    picture = ImageOps.exif_transpose(source)
    if picture.mode in NUMBERS:
        picture = _eight_bits(picture)
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB" if channels == 3 else "L")


def _eight_bits(picture: Image.Image) -> Image.Image:
    numbers = np.asarray(picture).astype(np.float64)
    low, high = numbers.min(), numbers.max()
    if not (low >= 0 and np.isfinite(high)):
        raise ValueError(f"its numbers go from {low:g} to {high:g}; expected none below 0 and none that is not finite")
    known = {"F": [1], "I": [255, 65535]}.get(picture.mode, [65535])
    white = next((most for most in known if high <= most), high)
    return Image.fromarray((numbers * (255 / white)).round().astype(np.uint8))


def cropped(size: int, channels: int) -> v2.Transform:
    """A picture's shorter side brought to `size` pixels, its middle cut out: (channels, size, size) in [-1, 1]."""
    return v2.Compose([v2.Resize(size), v2.CenterCrop(size), v2.ToImage(), v2.ToDtype(torch.float32, scale=True),
                       v2.Normalize([0.5] * channels, [0.5] * channels)])


def to_tensor(transform: Callable, picture: Image.Image, shape: tuple[int, ...], what: object) -> Tensor:
    """What a transform makes of a picture. Raises ValueError that names `what` if it is not what models read."""
    image = transform(picture)
    if not isinstance(image, Tensor):
        found = f"a {type(image).__name__}"
    elif image.shape != shape or image.dtype != torch.float32:
        found = f"{image.dtype} {tuple(image.shape)}"
    elif not (image.abs() <= 1 + 1e-4).all():  # NaN is not, either
        found = f"numbers from {image.min():.3g} to {image.max():.3g}"
    else:
        return image
    raise ValueError(f"{what}: the transform gave {found}, expected torch.float32 {shape} in [-1, 1]. Leave mean and "
                     "std to Original(..., mean=, std=), which absorbs them")
