"""The lessons' checks can fail: strict nbval goes red on copies of the library with a fault in them."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
# Fault -> (file, correct code, faulty code, lessons that must notice).
FAULTS = {
    "the fold forgets the bias": (
        "layers.py", "sum(term.bias for term in terms)", "0 * sum(term.bias for term in terms)",
        ["10_folding"]),
    "the fold of full matrices forgets the bias": (
        "layers.py", "else folded[:, -1]", "else 0 * folded[:, -1]", ["03_merge_and_unmerge"]),
    "M and U are swapped": (
        "layers.py", "self.merges, self.unmerges, self.k = merges, unmerges, len(layers)",
        "self.merges, self.unmerges, self.k = unmerges or merges, merges, len(layers)", ["03_merge_and_unmerge"]),
    "a LayerNorm is skipped": (
        "supernet.py", "self.eval()\n",
        "self.eval(); [setattr(b.norm2, 'forward', lambda x: x) for b in getattr(self.body, 'blocks', ())]\n",
        ["10_folding"]),
    "least squares forget the ridge": (
        "engine/statistics.py", "ridge * gram.diagonal()", "0 * gram.diagonal()", ["08_the_fitted_start"]),
    "corrected writes have the wrong sign": (
        "start.py", "cross - each.cross[:, :size] @ directions", "cross + each.cross[:, :size] @ directions",
        ["09_errors_in_the_start"]),
    "nothing": ("layers.py", "", "", ["03_merge_and_unmerge"]),
}


def broken_copy(folder: Path, file: str, right: str, wrong: str) -> None:
    shutil.copytree(ROOT / "fsmerge_lite", folder / "fsmerge_lite")
    for name in ("data", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    path = folder / "fsmerge_lite" / file
    assert right in path.read_text(), "the library has changed: update FAULTS"
    path.write_text(path.read_text().replace(right, wrong) if right else path.read_text())


@pytest.mark.parametrize("fault, lesson", [(fault, lesson) for fault in FAULTS for lesson in FAULTS[fault][-1]])
def test_a_lesson_goes_red_on_a_broken_library(fault, lesson, tmp_path):
    broken_copy(tmp_path, *FAULTS[fault][:3])
    (tmp_path / "notebooks").mkdir()
    notebook = shutil.copy(ROOT / "notebooks" / f"{lesson}.ipynb", tmp_path / "notebooks")
    nbval = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--nbval", "--nbval-current-env",
             "--nbval-cell-timeout", "300", "--nbval-sanitize-with", str(ROOT / "tests" / "notebooks" / "sanitize.cfg"),
             notebook]
    run = subprocess.run(nbval, cwd=tmp_path, capture_output=True, text=True,
                         env=os.environ | {"PYTHONPATH": str(tmp_path), "FSMERGE_QUIET": "1"})
    assert run.returncode == (0 if fault == "nothing" else 1), run.stdout[-3000:] + run.stderr[-2000:]
