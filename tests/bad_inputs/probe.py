import sys, os, warnings, tempfile
sys.path.insert(0, "tests"); sys.path.insert(0, "tests/bad_inputs")
from pathlib import Path
import importlib, refused
m = importlib.import_module("cases")
os.environ["FSMERGE_QUIET"]="1"
d = Path(tempfile.mkdtemp()); (d/"f").mkdir(); (d/"cwd").mkdir()
g = refused.Given(d/"f")
os.chdir(d/"cwd")
only = sys.argv[1:] 
for name, call, words in m.CASES:
    if only and not any(o in name for o in only): continue
    try:
        with warnings.catch_warnings(record=True) as w:
            warnings.simplefilter("always")
            r = call(g)
        print(f"SILENT  {name}: {str(r)[:60]!r} {[str(x.message)[:80] for x in w]}")
    except BaseException as e:
        text = str(e)
        bad = not isinstance(e, refused.KINDS) or refused.INTERNAL.search(text)
        miss = words not in text
        print(f"{'UNCLEAR' if bad else 'WORDS  ' if miss else 'ok     '} {name}: {type(e).__name__}: {text[:230]!r}" if bad or miss or only else f"ok      {name}")
    left = list(Path(".").rglob("*"))
    if left: print("   WROTE", left); import shutil; shutil.rmtree(d/"cwd"); (d/"cwd").mkdir(); os.chdir(d/"cwd")
