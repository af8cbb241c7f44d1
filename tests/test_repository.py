"""The house itself: pins that agree, no host names, commands that are there, docstrings, file sizes."""
import ast
import inspect
import re
import subprocess
from pathlib import Path

import pytest

import fsmerge_lite as fsm

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "fsmerge_lite").rglob("*.py"))


def constraints() -> dict[str, str]:
    """Name -> version as on the newer Pythons, which is what conda gets."""
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version, marker = re.fullmatch(r'([\w-]+)==([\w.]+)(; python_version .+)?', line).groups()
            if marker is None or ">=" in marker:
                pins[name] = version
    return pins


def as_numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def test_environment_has_the_same_pins():
    found = dict(re.findall(r"^ +- ([\w-]+)==([\w.]+)$", (ROOT / "environment.yml").read_text(), re.M))
    assert found == constraints()


def test_pyproject_bounds_admit_the_pins_and_nothing_is_unpinned():
    text = (ROOT / "pyproject.toml").read_text()
    bounds = dict(re.findall(r'"([\w-]+)>=([\d.]+)"', text))
    bounds.pop("setuptools")
    assert bounds.keys() == constraints().keys()
    for name, low in bounds.items():
        assert as_numbers(low) <= as_numbers(constraints()[name]), name
    assert f'version = "{fsm.__version__}"' in text
    assert f"version: {fsm.__version__}" in (ROOT / "CITATION.cff").read_text()


def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.splitlines() if (ROOT / name).exists()]


def test_pins_carry_no_host_name():
    for name in ("constraints.txt", "environment.yml", "pyproject.toml", "Makefile"):
        assert not re.search(r"https?://|index-url|file:", (ROOT / name).read_text()), name


def test_ci_calls_three_targets_and_nothing_else():
    assert (ROOT / ".ci" / "run").read_text().splitlines() == [
        "#!/usr/bin/env bash", "set -eu", 'cd "$(dirname "$0")/.."', "make wheel-test", "make test", "exec make grade"]


def test_readme_names_the_commands_that_exist():
    readme, makefile = (ROOT / "README.md").read_text(), (ROOT / "Makefile").read_text()
    assert {"make tour", "make test"} <= set(re.findall(r"make \w+", readme))
    for target in re.findall(r"`make (\w+)`", readme):
        assert re.search(rf"^{target}:", makefile, re.M), target
    for link in re.findall(r"\]\((?!http)([^)#]+)", readme):
        assert (ROOT / link).exists(), link


def test_no_data_sets_or_large_files_are_tracked():
    for path in tracked():
        assert path.stat().st_size < 3e6, path
        assert "ubyte" not in path.name and path.suffix not in {".pt", ".pth", ".pkl", ".bin"}, path


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.name)
def test_modules_are_short_and_documented(path):
    source = path.read_text()
    assert source.count("\n") <= 350
    assert ast.get_docstring(ast.parse(source))


def test_public_names_say_what_they_do():
    for name in fsm.__all__:
        thing = getattr(fsm, name)
        assert inspect.getdoc(thing), name
        if inspect.isfunction(thing) and len(inspect.signature(thing).parameters) > 2:
            assert "Args:" in thing.__doc__, name
