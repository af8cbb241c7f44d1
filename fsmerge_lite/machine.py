"""The machine at hand: which device to use, and what to paste into a bug report."""
import os
import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from .originals import DATA

PACKAGES = ("fsmerge_lite", "torch", "torchvision", "timm", "safetensors", "scikit-learn", "numpy", "matplotlib",
            "jupyterlab", "ipywidgets", "nbval")


def pick_device(name: str = "auto") -> torch.device:
    """The torch device for auto (CUDA when there is one), cpu or cuda.

    Raises:
        ValueError: cuda is asked for and not there, or the name is no device.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device is visible to torch; use --device cpu, or see `python -m fsmerge_lite doctor`")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


class Report(dict):
    """What was found, printed a line an entry."""

    def __str__(self) -> str:
        return "\n".join(f"{key:<13}{value}" for key, value in self.items())

    __repr__ = __str__


def doctor() -> Report:
    """Versions, devices, threads and shipped data: what to paste into a bug report."""
    report = Report(python=platform.python_version(), system=f"{platform.system()} {platform.machine()}")
    for package in PACKAGES:
        try:
            report[package] = version(package)
        except PackageNotFoundError:
            report[package] = "not installed"
    report["threads"] = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    report["cuda"] = ", ".join(gpus) or "none"
    report["originals"] = ", ".join(sorted(p.stem for p in DATA.glob("*.safetensors"))) or f"none in {DATA.name}/"
    report["FSMERGE_DATA"] = os.environ.get("FSMERGE_DATA", "not set")
    return report
