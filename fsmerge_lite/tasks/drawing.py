"""The embedded pictures: real digits from scikit-learn; letters, shapes and textures drawn here.

Every function gives images (n, 3, size, size) in [-1, 1] and labels (n,), fixed by the generator.
"""
import functools
import math
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

SIZE = 32  # pixels a side, where no other size is asked for


def extra(name: str, what: str) -> ModuleType:
    """A package that only the embedded pictures need.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{what} come with {name.split('.')[0]}, which is not installed; "
                                  "pip install 'fsmerge_lite[tasks]'") from error


def _uniform(n: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(n, generator=generator)


def _paint(mask: Tensor, generator: torch.Generator, noise: float = 0.06) -> Tensor:
    """Color masks (n, H, W) in [0, 1] with a dark and a light color, in either order, plus noise."""
    n = len(mask)
    dark = 0.45 * torch.rand(n, 3, 1, 1, generator=generator)
    light = 1 - 0.45 * torch.rand(n, 3, 1, 1, generator=generator)
    swap = torch.rand(n, 1, 1, 1, generator=generator) < 0.5
    ink, paper = torch.where(swap, light, dark), torch.where(swap, dark, light)
    image = paper + (ink - paper) * mask[:, None]
    image = image + noise * torch.randn(image.shape, generator=generator)
    return image.clamp(0, 1) * 2 - 1


def _stamps(atlas: Tensor, degrees: float, shrink: tuple[float, float], n: int, generator: torch.Generator
            ) -> tuple[Tensor, Tensor]:
    """Painted pictures of stamps (classes, variants, 2S, 2S), each turned by up to `degrees`, sized and shifted."""
    labels = torch.randint(len(atlas), (n,), generator=generator)
    variant = torch.randint(atlas.shape[1], (n,), generator=generator)
    angle = _uniform(n, -math.radians(degrees), math.radians(degrees), generator)
    zoom, stretch = _uniform(n, *shrink, generator), _uniform(n, 0.9, 1.1, generator)
    shift = torch.stack([_uniform(n, -0.12, 0.12, generator) for _ in "xy"], 1)  # (n, 2)
    masks = []
    for rows in torch.arange(n).split(1024):  # bounded memory for any n
        stamp = atlas[labels[rows], variant[rows]][:, None]
        turned = turn(stamp, angle[rows], zoom[rows], shift[rows], stretch[rows])
        masks.append(F.avg_pool2d(turned, 2)[:, 0])
    return _paint(torch.cat(masks), generator), labels


def turn(images: Tensor, angle: Tensor, zoom: Tensor, shift: Tensor, stretch: Tensor | float = 1.0,
         beyond: str = "zeros") -> Tensor:
    """Images (n, C, H, W), each turned by `angle` (n,), shrunk by `zoom` (n,) and shifted by `shift` (n, 2).

    `stretch` shrinks the height once more; `beyond` says what stands outside the picture (zeros or border).
    """
    cos, sin = angle.cos() * zoom, angle.sin() * zoom
    affine = torch.stack([cos, -sin * stretch, shift[:, 0], sin, cos * stretch, shift[:, 1]], 1).unflatten(1, (2, 3))
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode=beyond, align_corners=False)


def jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    """Real images (n, C, H, W), which are few, each turned, sized and shifted a little."""
    n = len(images)
    angle, zoom = _uniform(n, -0.25, 0.25, generator), _uniform(n, 0.85, 1.2, generator)
    shift = torch.stack([_uniform(n, -0.125, 0.125, generator) for _ in "xy"], 1)
    return turn(images, angle, zoom, shift, beyond="border")


def _stamp(draw: Callable[[ImageDraw.ImageDraw], None], side: int) -> np.ndarray:
    """What `draw` puts on a canvas with coordinates 0..256, as a mask (side, side) in [0, 1]."""
    canvas = Image.new("L", (256, 256))
    draw(ImageDraw.Draw(canvas))
    return np.asarray(canvas.resize((side, side), Image.Resampling.BOX), dtype=np.float32) / 255


FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSerif-Bold",
         "DejaVuSerif-Italic", "DejaVuSansMono", "STIXGeneral", "STIXGeneralBol", "cmr10", "cmss10", "cmtt10")


@functools.cache
def _letters_atlas(side: int) -> Tensor:
    folder = Path(extra("matplotlib", "the fonts of the letters").get_data_path()) / "fonts" / "ttf"
    fonts = [ImageFont.truetype(folder / f"{font}.ttf", 190) for font in FONTS]
    return torch.from_numpy(np.array([
        [_stamp(lambda d, c=c, f=f: d.text((128, 128), c, fill=255, font=f, anchor="mm"), side) for f in fonts]
        for c in LETTERS]))


LETTERS = tuple("ABCDEFGHJK")
SHAPES = ("circle", "ring", "crescent", "triangle", "square", "pentagon", "star", "cross", "heart", "arrow")


def _corners(n: int, radius: float = 96, inner: float | None = None) -> list[tuple[float, float]]:
    """A regular polygon of n corners around (128, 128); with `inner`, a star of n points."""
    radii = [radius] if inner is None else [radius, inner]
    count = n * len(radii)
    turns = [(2 * math.pi * i / count - math.pi / 2, radii[i % len(radii)]) for i in range(count)]
    return [(128 + r * math.cos(t), 128 + r * math.sin(t)) for t, r in turns]


def _disc(d: ImageDraw.ImageDraw, x: float, y: float, r: float, fill: int = 255) -> None:
    d.ellipse((x - r, y - r, x + r, y + r), fill=fill)


@functools.cache
def _shapes_atlas(side: int) -> Tensor:
    drawings = {
        "circle": lambda d: _disc(d, 128, 128, 84),
        "ring": lambda d: (_disc(d, 128, 128, 90), _disc(d, 128, 128, 52, 0)),
        "crescent": lambda d: (_disc(d, 128, 128, 90), _disc(d, 170, 128, 76, 0)),
        "triangle": lambda d: d.polygon(_corners(3, 104), fill=255),
        "square": lambda d: d.rectangle((56, 56, 200, 200), fill=255),
        "pentagon": lambda d: d.polygon(_corners(5, 96), fill=255),
        "star": lambda d: d.polygon(_corners(5, 110, 44), fill=255),
        "cross": lambda d: (d.rectangle((100, 32, 156, 224), fill=255), d.rectangle((32, 100, 224, 156), fill=255)),
        "heart": lambda d: (_disc(d, 88, 96, 50), _disc(d, 168, 96, 50),
                            d.polygon([(44, 120), (212, 120), (128, 222)], fill=255)),
        "arrow": lambda d: (d.polygon([(128, 24), (214, 120), (42, 120)], fill=255),
                            d.rectangle((98, 110, 158, 228), fill=255)),
    }
    return torch.from_numpy(np.array([[_stamp(drawings[name], side)] for name in SHAPES]))


def _ramp(phase: Tensor) -> Tensor:
    """A soft square wave of period 1 in [0, 1]."""
    return torch.sigmoid(6 * torch.sin(2 * math.pi * phase))


def _edge(u: Tensor) -> Tensor:
    """How far u is from the nearest whole number, in [0, 0.5]."""
    return (u - u.round()).abs()


# Each texture maps turned and scaled coordinates u, v (n, S, S) to a mask in [0, 1].
TEXTURES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "stripes": lambda u, v: _ramp(u),
    "waves": lambda u, v: _ramp(u + 0.25 * torch.sin(2 * math.pi * v)),
    "zigzag": lambda u, v: _ramp(u + 2 * _edge(v)),
    "checks": lambda u, v: torch.sigmoid(12 * torch.sin(math.pi * u) * torch.sin(math.pi * v)),
    "grid": lambda u, v: torch.sigmoid(25 * (torch.minimum(_edge(u), _edge(v)) - 0.12)),
    "bricks": lambda u, v: torch.sigmoid(
        25 * (torch.minimum(2 * _edge(u / 2 + 0.5 * (v.floor() % 2)), _edge(v)) - 0.12)),
    "dots": lambda u, v: torch.sigmoid(25 * (0.3 - torch.hypot(_edge(u), _edge(v)))),
    "rings": lambda u, v: _ramp(torch.hypot(u, v)),
    "spokes": lambda u, v: _ramp(torch.atan2(v, u) * 8 / (2 * math.pi)),
    "spiral": lambda u, v: _ramp(torch.hypot(u, v) + torch.atan2(v, u) * 2 / (2 * math.pi)),
}


def textures(n: int, generator: torch.Generator, size: int = SIZE) -> tuple[Tensor, Tensor]:
    """Turned, scaled and colored textures, one of `TEXTURES` each."""
    labels = torch.randint(len(TEXTURES), (n,), generator=generator)
    angle, zoom = _uniform(n, 0, 2 * math.pi, generator), _uniform(n, 2.5, 4.5, generator)
    shift = torch.stack([_uniform(n, -0.25, 0.25, generator) for _ in "xy"])[:, :, None, None]  # (2, n, 1, 1)
    axis = (torch.arange(size) + 0.5) / size - 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    x, y = x + shift[0], y + shift[1]  # (n, S, S)
    cos, sin = (zoom * angle.cos())[:, None, None], (zoom * angle.sin())[:, None, None]
    u, v = cos * x - sin * y, sin * x + cos * y
    mask = torch.empty_like(u)
    for label, texture in enumerate(TEXTURES.values()):
        rows = labels == label
        mask[rows] = texture(u[rows], v[rows])
    return _paint(mask, generator), labels


@functools.cache
def digits(size: int = SIZE) -> tuple[Tensor, Tensor]:
    """scikit-learn's 1,797 handwritten digits, 8 x 8 grown to size x size, in one fixed random order."""
    data = extra("sklearn.datasets", "the handwritten digits").load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    grey = torch.from_numpy(data.images).float()[:, None] / 16
    images = F.interpolate(grey, (size, size), mode="bicubic", align_corners=False).clamp(0, 1) * 2 - 1
    return images.expand(-1, 3, -1, -1)[order], torch.from_numpy(data.target).long()[order]


def letters(n: int, generator: torch.Generator, size: int = SIZE) -> tuple[Tensor, Tensor]:
    """Letters in twelve fonts, turned by up to 15 degrees."""
    return _stamps(_letters_atlas(2 * size), 15, (0.65, 0.95), n, generator)


def shapes(n: int, generator: torch.Generator, size: int = SIZE) -> tuple[Tensor, Tensor]:
    """Filled shapes, turned by up to 30 degrees."""
    return _stamps(_shapes_atlas(2 * size), 30, (0.8, 1.2), n, generator)
