"""Time, peak memory and operations of one training step: python benchmarks/step.py [--models tiny S B] [--out FOLDER].

Distillation of one ViT and the SuperNet, folded (W* kept for the backward, or made again there) and explicit,
alternating in one process; everything is told as a ratio to distillation, as median and range over rounds. Writes
step.json after each setting (a killed run resumes), step.md and step.png.
"""
import argparse
import copy
import ctypes
import gc
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import fsmerge_lite as fsm
from fsmerge_lite import plots
from fsmerge_lite.files import write_whole
from fsmerge_lite.fitting import fit
from fsmerge_lite.machine import pick_device
from fsmerge_lite.tasks import Calibration
from fsmerge_lite.training import reconstruction

VITS = {"tiny": {"dim": 96, "depth": 4, "num_heads": 4, "patch_size": 8, "img_size": 32},
        "S": {"dim": 384, "depth": 12, "num_heads": 6, "patch_size": 16, "img_size": 224},
        "B": {"dim": 768, "depth": 12, "num_heads": 12, "patch_size": 16, "img_size": 224}}
KINDS = ("distillation", "folded", "made again", "explicit")


@dataclass(frozen=True)
class Setting:
    """One row: a ViT, how many originals, rank, images a step, pixels, precision, device."""

    model: str
    k: int = 2
    rank: int = 12
    batch: int = 8
    pixels: int = 224
    precision: str = "fp32"
    device: str = "cpu"

    def vits(self, count: int) -> list[nn.Module]:
        made = (fsm.vit(**VITS[self.model] | {"img_size": self.pixels}) for _ in range(count))
        return [vit.to(self.device).eval().requires_grad_(False) for vit in made]


def settings(model: str, device: str) -> list[Setting]:
    """What is varied for one ViT: k, images a step, rank, tokens and, on a GPU, precision."""
    batch, pixels = (64, 32) if model == "tiny" else (32 if device == "cuda" else 8, 224)
    base = Setting(model, batch=batch, pixels=pixels, device=device)
    made = [base, replace(base, k=4), replace(base, k=8), replace(base, k=8, batch=batch // 2), replace(base, rank=32),
            replace(base, pixels=pixels // 2)]
    return [replace(s, precision=p) for s in made for p in (("fp32",) if device == "cpu" else ("fp32", "tf32", "bf16"))]


def steps_of(kind: str, setting: Setting, originals: list[nn.Module]) -> Callable[[int], fsm.History]:
    """How to train so many steps: the library's own loop, loss and optimiser, on targets that are there already."""
    torch.manual_seed(0)
    owner = torch.arange(max(setting.batch, setting.k)) % setting.k
    images = Calibration(torch.randn(len(owner), 3, setting.pixels, setting.pixels), owner)
    like = next(originals[0].parameters())
    targets = [torch.randn(int((owner == i).sum()), originals[0].embed_dim).to(like) for i in range(setting.k)]
    if kind == "distillation":
        student = copy.deepcopy(originals[0]).requires_grad_(True)
        parameters = list(student.parameters())
        loss = reconstruction(lambda x: [student(x)] * setting.k, images, targets, setting.batch, 0, like)
    else:
        net = fsm.SuperNet(originals, setting.rank)
        net.set_grad_checkpointing(kind == "made again")
        parameters = [p for p in net.parameters() if p.requires_grad]
        loss = reconstruction(lambda x: net(x, explicit=kind == "explicit"), images, targets, setting.batch, 0, like)
    precision = "bf16" if setting.precision == "bf16" else "fp32"
    return lambda steps: fit(parameters, loss, steps, 1e-6, progress=False, precision=precision)


# ---------------------------------------------------------------- the three measurements

def memory_and_operations(kind: str, setting: Setting) -> tuple[float, float]:
    """MB that the models, their optimiser and two steps take at most, and the operations of a step.

    Distillation has no originals any more by then, as their features are there. The peak is not a number where it
    cannot be set back: on a CPU that is not under Linux.
    """
    start = _reset_memory(setting.device)
    with FlopCounterMode(display=False) as counter:
        steps_of(kind, setting, setting.vits(1 if kind == "distillation" else setting.k))(2)
    peak = torch.cuda.max_memory_allocated() / 2 ** 20 if setting.device == "cuda" else _status("VmHWM")
    return peak - start, counter.get_total_flops() / 2


def fits_explicitly(setting: Setting, distillation: float) -> bool:
    """Whether the explicit run, about k times 1.3 of distillation's MB by what was measured, fits into the machine."""
    there = (torch.cuda.get_device_properties(0).total_memory if setting.device == "cuda"
             else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return not setting.k * 1.3 * distillation > there / 2 ** 20


def _reset_memory(device: str) -> float:
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2 ** 20
    if not Path("/proc/self/clear_refs").exists():
        return math.nan
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    return _status("VmRSS")


def _status(field: str) -> float:
    if not Path("/proc/self/status").exists():
        return math.nan
    line, = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def step_times(runs: dict[str, Callable[[int], fsm.History]], rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds a step, one median a round; who goes first changes from round to round."""
    times: dict[str, list[float]] = {kind: [] for kind in runs}
    for n in range(rounds):
        for kind in list(runs)[::(-1) ** n]:
            seconds = runs[kind](1 + steps).seconds  # the first step makes the optimiser's state
            times[kind].append(statistics.median(b - a for a, b in pairwise(seconds)))
    return times


def latencies(models: dict[str, nn.Module], setting: Setting, rounds: int) -> dict[str, list[float]]:
    """Seconds of one forward of each model, one a round."""
    x = torch.randn(setting.batch, 3, setting.pixels, setting.pixels).to(setting.device)
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for _ in range(rounds + 1):
            for name, model in models.items():
                start = time.perf_counter()
                model(x).sum().item()
                times[name].append(time.perf_counter() - start)
    return {name: values[1:] for name, values in times.items()}


def matmul_rate(setting: Setting, times: int = 10) -> float:
    """Multiplications a second of a large matrix product in this precision: what the machine can do at best."""
    size = 8192 if setting.device == "cuda" else 1024
    x = torch.randn(size, size, device=setting.device, dtype=torch.bfloat16 if setting.precision == "bf16" else None)
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        (x @ x)[0, 0].item()
        seconds.append(time.perf_counter() - start)
    return size ** 3 / min(seconds)


def measure(setting: Setting, rounds: int, steps: int) -> dict:
    """All of it for one setting."""
    torch.set_float32_matmul_precision("high" if setting.precision == "tf32" else "highest")
    rate = matmul_rate(setting)
    found = {kind: memory_and_operations(kind, setting) for kind in KINDS[:-1]
             if kind != "made again" or setting.model != "tiny"}  # which has no large layer
    if fits_explicitly(setting, found["distillation"][0]):
        found["explicit"] = memory_and_operations("explicit", setting)
    originals = setting.vits(setting.k)
    runs = {kind: steps_of(kind, setting, originals) for kind in found}
    times = step_times(runs, rounds, steps)
    folded = fsm.SuperNet(originals, setting.rank).fold().backbone
    return asdict(setting) | {"matmul_rate": rate, "memory_mb": {kind: memory for kind, (memory, _) in found.items()},
                              "operations": {kind: count for kind, (_, count) in found.items()}, "seconds": times,
                              "latency": latencies({"merged": folded, "original": originals[0]}, setting, 3 * rounds)}


# ---------------------------------------------------------------- what is written

def ratios(times: dict[str, list[float]], of: str, to: str) -> list[float]:
    """Round by round, sorted."""
    return sorted(a / b for a, b in zip(times[of], times[to]))


def told(record: dict, of: str, to: str) -> str:
    """The median of a ratio and its range over rounds; a dash where one of the two did not run."""
    times = record["seconds"] | record["latency"]
    if of not in times:
        return "–"
    found = ratios(times, of, to)
    return f"{statistics.median(found):.2f} ({found[0]:.2f} to {found[-1]:.2f})"


def share_of_rate(record: dict, kind: str) -> str:
    """What part of the machine's rate of matrix products a step of this kind comes to, in percent."""
    if "matmul_rate" not in record or kind not in record["seconds"]:
        return "–"
    seconds = statistics.median(record["seconds"][kind])
    return f"{100 * record['operations'][kind] / seconds / record['matmul_rate']:.0f}"


def table(records: list[dict]) -> str:
    """A row a setting, in Markdown."""
    columns = ("ViT", "k", "rank", "images", "pixels", "", "distillation, s", "folded", "by operations",
               "W* made again", "explicit", "explicit / folded", "memory: folded", "made again", "explicit", "latency",
               "% of matmul rate: distillation", "folded")
    lines = [f"| {' | '.join(columns)} |", "|---|" + 17 * "---:|"]
    for r in sorted(records, key=lambda r: list(VITS).index(r["model"])):
        operations = r["operations"]["folded"] / r["operations"]["distillation"]
        memory = [f"{r['memory_mb'][kind] / r['memory_mb']['distillation']:.2f}" if kind in r["memory_mb"] else "–"
                  for kind in KINDS[1:]]
        lines.append(f"| {r['model']} | {r['k']} | {r['rank']} | {r['batch']} | {r['pixels']} | "
                     f"{r['device']} {r['precision']} | {statistics.median(r['seconds']['distillation']):.3g} | "
                     f"{told(r, 'folded', 'distillation')} | {operations:.2f} | "
                     f"{told(r, 'made again', 'distillation')} | "
                     f"{told(r, 'explicit', 'distillation')} | {told(r, 'explicit', 'folded')} | "
                     f"{' | '.join(memory)} | {told(r, 'merged', 'original')} | "
                     f"{share_of_rate(r, 'distillation')} | {share_of_rate(r, 'folded')} |")
    return "\n".join(lines)


def growth(records: list[dict]) -> str:
    """What more originals, a higher rank and fewer tokens do to the ratio, beside the count of operations."""
    lines = []
    for model, device, precision in dict.fromkeys((r["model"], r["device"], r["precision"]) for r in records):
        base, found = replace(settings(model, device)[0], precision=precision), {}
        half = base.pixels // 2
        for name, setting in (("k = 2", base), ("k = 4", replace(base, k=4)), ("k = 8", replace(base, k=8)),
                              ("rank 32", replace(base, rank=32)), (f"{half} pixels", replace(base, pixels=half))):
            for r in (r for r in records if r.items() >= asdict(setting).items()):
                operations = r["operations"]["folded"] / r["operations"]["distillation"]
                found[name] = f"{name}: {told(r, 'folded', 'distillation').split()[0]} ({operations:.2f})"
        lines.append(f"- ViT-{model}, {device} {precision}: {', '.join(found.values())}")
    return "\n".join(["How the cost of a folded step grows (in brackets: by the count of operations):", "", *lines])


def write(records: list[dict], out: Path) -> str:
    """The JSON, the table and the figure."""
    write_whole(out / "step.json", (json.dumps(records, indent=0) + "\n").encode())
    text = (f"`python benchmarks/step.py`: one training step, as a multiple of a distillation step (median and range "
            f"over rounds).\n\n{table(records)}\n\n{growth(records)}\n")
    write_whole(out / "step.md", text.encode())
    found: dict[str, dict] = {}
    for r in records:
        base = settings(r["model"], r["device"])[0]
        if (r["rank"], r["pixels"], r["batch"]) == (base.rank, base.pixels, base.batch):
            lines = found.setdefault(f"ViT-{r['model']}, {r['device']} {r['precision']}", {})
            for name in (kind for kind in KINDS[:0:-1] if kind in r["seconds"]):
                told_as = "folded, W* made again" if name == "made again" else name
                lines.setdefault(told_as, {})[r["k"]] = statistics.median(ratios(r["seconds"], name, "distillation"))
            operations = r["operations"]["folded"] / r["operations"]["distillation"]
            lines.setdefault("folded, by operations", {})[r["k"]] = operations
    write_whole(out / "step.png", plots.png(plots.growth(found)))
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=VITS, default=list(VITS), help="(default: all)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder (default: %(default)s)")
    given = parser.parse_args()
    device, file = str(pick_device(given.device)), given.out / "step.json"
    records = json.loads(file.read_text()) if file.is_file() else []
    done = [{name: r[name] for name in asdict(Setting("tiny"))} for r in records]
    todo = [s for model in given.models for s in settings(model, device) if asdict(s) not in done]
    for setting in tqdm(todo, desc="step"):
        records.append(measure(setting, given.rounds, 20 if setting.model == "tiny" else 1))
        text = write(records, given.out)
    print(text if todo else table(records))


if __name__ == "__main__":
    main()
