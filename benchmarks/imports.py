"""How long importing the library takes beside torch and timm: python benchmarks/imports.py [--rounds N].

Prints the ratio of `import fsmerge_lite` to `import torch, timm`, each in fresh processes, alternating.
"""
import argparse
import statistics
import subprocess
import sys
import time


def seconds(what: str) -> float:
    """Of a fresh Python process that imports this."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {what}"], check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    ratios = []
    for _ in range(parser.parse_args().rounds):
        ours, theirs = seconds("fsmerge_lite"), seconds("torch, timm")
        ratios.append(ours / theirs)
        print(f"fsmerge_lite {ours:.2f} s, torch and timm {theirs:.2f} s")
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
