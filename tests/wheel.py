"""The installed wheel, alone: `make wheel-test` runs this in an empty folder, in an environment of the wheel's own.

    python -I wheel.py README.md
"""
import re
import subprocess
import sys
from pathlib import Path

import fsmerge_lite as fsm
from fsmerge_lite.tasks.originals import DATA

package = Path(fsm.__file__).resolve().parent
assert package.is_relative_to(Path(sys.prefix).resolve()), f"{package} is not the installed package"
assert DATA.is_relative_to(package), f"the originals at {DATA} are not the wheel's"
assert [original.name for original in fsm.load_originals()] == ["digits", "letters", "shapes", "textures"]
assert fsm.load_originals("kind")[0].card["accuracy"] > 70

example = re.search(r"## In Python\n\n```python\n(.*?)```", Path(sys.argv[1]).read_text(), re.S).group(1)
names: dict = {}
exec(compile(example, "README.md", "exec"), names)
scores = fsm.evaluate(names["merged"], [names["a"].task, names["b"].task])
assert scores.mean > 90, scores
for file in ("runs/merged.safetensors",):
    assert Path(file).is_file(), file

done = subprocess.run([sys.executable, "-I", "-m", "fsmerge_lite", "tour", "--steps", "60"], text=True,
                      capture_output=True, check=True)
assert "folded and SuperNet: equal" in done.stdout and Path("runs/tour/report.html").is_file()
print(scores, done.stdout, "the wheel works alone", sep="\n\n")
