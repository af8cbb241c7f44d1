"""The device to run on, and a report of versions and devices for bug reports."""
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from ..tasks.originals import DATA

PACKAGES = ("fsmerge_lite", "torch", "torchvision", "timm", "safetensors", "scikit-learn", "numpy", "scipy", "pandas",
            "matplotlib", "jupyterlab", "ipywidgets", "nbval")


def pick_device(name: str = "auto") -> torch.device:
    """The torch device for auto (CUDA when there is one), cpu or cuda.

    Raises:
        ValueError: an unknown name, or cuda without a CUDA device.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, got {name!r}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device is visible to torch; use --device cpu, or see `python -m fsmerge_lite doctor`")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


class Report(dict):
    """Entries that print as one line each."""

    def __str__(self) -> str:
        return "\n".join(f"{key:<13}{value}" for key, value in self.items())

    __repr__ = __str__


def installed(package: str) -> str:
    """The version of a package, or "not installed"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def environment(device: torch.device | str) -> dict:
    """Versions, commit and device: what a measurement depends on besides its settings."""
    folder = Path(__file__).resolve().parent
    git = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        commit = ""
    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"versions": {package: installed(package) for package in ("fsmerge_lite", "torch", "timm")},
            "commit": commit or "not a checkout", "device": name}


def doctor() -> Report:
    """Versions, devices, threads and shipped data, for a bug report."""
    report = Report(python=platform.python_version(), system=f"{platform.system()} {platform.machine()}")
    report |= {package: installed(package) for package in PACKAGES}
    report["threads"] = f"{torch.get_num_threads()} of {os.cpu_count()} cores"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    report["cuda"] = ", ".join(gpus) or "none"
    report["originals"] = ", ".join(sorted(p.stem for p in DATA.glob("*.safetensors"))) or f"none in {DATA.name}/"
    report["FSMERGE_DATA"] = os.environ.get("FSMERGE_DATA", "not set")
    return report
