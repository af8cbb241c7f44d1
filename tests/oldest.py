"""Print the lower bounds of pyproject.toml as exact pins: what `make oldest` installs."""
import re
from pathlib import Path

for name, version in re.findall(r'"([\w-]+)>=([\d.]+)"', (Path(__file__).parents[1] / "pyproject.toml").read_text()):
    if name != "setuptools":
        print(f"{name}=={version}")
