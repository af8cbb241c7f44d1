"""The house: imports run one way, the method is light and small, and only `architectures` knows architectures."""
import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "fsmerge_lite"
MODULES = sorted(PACKAGE.rglob("*.py"))
# From bottom to top; the face and the command line may use everything.
ROOMS = ["engine", "architectures", "method", "compare", "tasks", "bench", "recipes", "course"]
ORDER = ["matrices", "layers", "models", "supernet", "training", "start"]  # of the method's own files
METHOD = [path for path in MODULES if path.parent.name in ("fsmerge_lite", "architectures")]
FURTHER = ("mlp.py", "text.py", "bert.py")  # architectures beside that of ViTs: the method is understood without them
HEAVY = ("matplotlib", "IPython", "sklearn", "pandas", "ipywidgets", "jupyterlab", "scipy")


def room(path: Path) -> str:
    return "method" if path.parent == PACKAGE else path.relative_to(PACKAGE).parts[0]


def imported(path: Path, everywhere: bool = True) -> list[Path]:
    """The files of the package that a file imports, inside functions too."""
    tree, files = ast.parse(path.read_text()), []
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
            for alias in node.names:
                for file in (base / f"{alias.name}.py", base.with_suffix(".py"), base / "__init__.py"):
                    if file.is_file():
                        files.append(file)
                        break
    return files


INSIDE = [path for path in MODULES if path not in (PACKAGE / "__init__.py", PACKAGE / "__main__.py")]


@pytest.mark.parametrize("path", INSIDE, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    for other in imported(path):
        assert other != PACKAGE / "__init__.py", "a room does not import the face"
        assert ROOMS.index(room(other)) <= ROOMS.index(room(path)), f"{path.name} imports {other}"
        if room(path) == room(other) == "method":
            assert ORDER.index(other.stem) < ORDER.index(path.stem), f"{path.name} imports {other.name}"


def test_every_room_is_known():
    assert {room(path) for path in MODULES} == set(ROOMS)
    assert {path.stem for path in METHOD if path.parent == PACKAGE} == {*ORDER, "__init__", "__main__"}


def test_the_method_is_small():
    lines = [path.read_text().count("\n") for path in METHOD if path.name not in FURTHER]
    further = [path.read_text().count("\n") for path in METHOD if path.name in FURTHER]
    assert len(lines) <= 12
    assert sum(lines) <= 1910
    assert max(further) <= 180


def test_importing_is_light():
    script = ("import sys, fsmerge_lite as fsm; fsm.load_originals('digits');"
              f"print([name for name in {HEAVY} if name in sys.modules])")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True,
                          cwd=PACKAGE.parent)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", [p for p in MODULES if room(p) in ("engine", "method", "compare", "tasks", "bench")],
                         ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_architectures_know_architectures(path):
    code = ast.unparse(_without_docstrings(ast.parse(path.read_text())))  # comments are gone, too
    assert not re.search(r"VisionTransformer|isinstance\([^)]*(MLP|Conv2d)|embed_dim|num_heads\b(?!=)", code), path
    layers = r"""['"](\w+\.)*(blocks|attn|mlp|qkv|proj|fc1|fc2|patch_embed|norm1|norm2|cls_token|pos_embed)\b"""
    assert not re.search(layers + r"|\.(blocks\[|(attn|qkv|fc1|fc2|patch_embed|norm1|norm2)\b)", code), path


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            node.body = node.body[1:] or [ast.Pass()]
    return tree
