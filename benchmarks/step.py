"""Time, peak memory and operations of one training step: python benchmarks/step.py [--models tiny S B] [--out FOLDER].

Compares distillation of one ViT with a SuperNet that is folded (W* kept for the backward, or recomputed there; A and B
of each original, or shared by all) or unfolded. They alternate in one process. Results are ratios to distillation, as
median and range over rounds. Writes step.json after each setting (a killed run resumes), step.md and step.png.
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
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

import fsmerge_lite as fsm
from fsmerge_lite.bench import figures
from fsmerge_lite.bench.machine import pick_device
from fsmerge_lite.compare.baselines import reconstruction
from fsmerge_lite.engine.files import write_whole
from fsmerge_lite.engine.fitting import fit
from fsmerge_lite.engine.images import Calibration

VITS = {"tiny": {"dim": 96, "depth": 4, "num_heads": 4, "patch_size": 8, "img_size": 32},
        "S": {"dim": 384, "depth": 12, "num_heads": 6, "patch_size": 16, "img_size": 224},
        "B": {"dim": 768, "depth": 12, "num_heads": 12, "patch_size": 16, "img_size": 224}}


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
        """So many ViTs with random weights."""
        vits = [fsm.vit(**VITS[self.model] | {"img_size": self.pixels}) for _ in range(count)]
        return [vit.to(self.device).eval().requires_grad_(False) for vit in vits]


def settings(model: str, device: str) -> list[Setting]:
    """The settings of one ViT: k, images a step, rank, tokens and, on a GPU, precision."""
    if model == "tiny":
        batch, pixels = 64, 32
    else:
        batch, pixels = (32 if device == "cuda" else 8), 224
    base = Setting(model, batch=batch, pixels=pixels, device=device)
    varied = [base, replace(base, k=4), replace(base, k=8), replace(base, k=8, batch=batch // 2),
              replace(base, rank=32), replace(base, pixels=pixels // 2)]
    precisions = ("fp32",) if device == "cpu" else ("fp32", "tf32", "bf16")
    return [replace(setting, precision=precision) for setting in varied for precision in precisions]


def steps_of(kind: str, setting: Setting, originals: list[nn.Module]) -> Callable[[int], fsm.History]:
    """A function that trains so many steps with the library's own loop, loss and optimizer, on random targets."""
    generator = torch.Generator().manual_seed(0)
    owner = torch.arange(max(setting.batch, setting.k)) % setting.k
    images = Calibration(torch.randn(len(owner), 3, setting.pixels, setting.pixels, generator=generator), owner)
    like = next(originals[0].parameters())
    targets = [torch.randn(int((owner == i).sum()), originals[0].embed_dim, generator=generator).to(like)
               for i in range(setting.k)]
    if kind == "distillation":
        student = copy.deepcopy(originals[0]).requires_grad_(True)
        parameters = list(student.parameters())
        loss = reconstruction(lambda x: [student(x)] * setting.k, images, targets, setting.batch, 0, like)
    else:
        net = fsm.SuperNet(originals, setting.rank, shared=kind == "shared")
        net.set_grad_checkpointing(kind == "recomputed")
        parameters = [p for p in net.parameters() if p.requires_grad]
        loss = reconstruction(lambda x: net(x, unfolded=kind == "unfolded"), images, targets, setting.batch, 0, like)
    precision = "bf16" if setting.precision == "bf16" else "fp32"
    return lambda steps: fit(parameters, loss, steps, 1e-6, progress=False, precision=precision)


# ---------------------------------------------------------------- the three measurements

def memory_and_operations(kind: str, setting: Setting) -> tuple[float, float]:
    """Peak memory in MB of the models, their optimizer and two steps; the number of operations of a step.

    Distillation needs no originals here: their features were computed before. The peak is NaN on a CPU without
    Linux, where it cannot be reset.
    """
    start = _reset_memory(setting.device)
    with FlopCounterMode(display=False) as counter:
        steps_of(kind, setting, setting.vits(1 if kind == "distillation" else setting.k))(2)
    peak = torch.cuda.max_memory_allocated() / 2 ** 20 if setting.device == "cuda" else _status("VmHWM")
    return peak - start, counter.get_total_flops() / 2


def fits_unfolded(setting: Setting, distillation: float) -> bool:
    """Whether the unfolded run fits into memory. It was measured to need about 1.3 k times distillation's MB."""
    if math.isnan(distillation):
        return True  # not known: try it
    if setting.device == "cuda":
        total = torch.cuda.get_device_properties(0).total_memory
    else:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return setting.k * 1.3 * distillation <= total / 2 ** 20


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
    """Seconds per step, one median for each round. Every other round goes through the kinds backwards."""
    times: dict[str, list[float]] = {kind: [] for kind in runs}
    for n in range(rounds):
        for kind in list(runs)[::(-1) ** n]:
            seconds = runs[kind](1 + steps).seconds  # the first step creates the optimizer's state
            times[kind].append(statistics.median(b - a for a, b in pairwise(seconds)))
    return times


def latencies(models: dict[str, nn.Module], setting: Setting, rounds: int) -> dict[str, list[float]]:
    """Seconds of one forward of each model, one number for each round."""
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
    """Multiplications per second of a large matrix product in this precision: the machine's best rate."""
    size = 8192 if setting.device == "cuda" else 1024
    x = torch.randn(size, size, device=setting.device, dtype=torch.bfloat16 if setting.precision == "bf16" else None)
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        (x @ x)[0, 0].item()
        seconds.append(time.perf_counter() - start)
    return size ** 3 / min(seconds)


def measure(setting: Setting, rounds: int, steps: int) -> dict:
    """All measurements for one setting."""
    torch.set_float32_matmul_precision("high" if setting.precision == "tf32" else "highest")
    rate = matmul_rate(setting)
    kinds = ["distillation", "folded", "shared"]
    if setting.model != "tiny":  # the tiny ViT has no layer that is large enough to be recomputed
        kinds.append("recomputed")
    memory, operations = {}, {}
    for kind in kinds:
        memory[kind], operations[kind] = memory_and_operations(kind, setting)
    if fits_unfolded(setting, memory["distillation"]):
        memory["unfolded"], operations["unfolded"] = memory_and_operations("unfolded", setting)
    originals = setting.vits(setting.k)
    runs = {kind: steps_of(kind, setting, originals) for kind in memory}
    times = step_times(runs, rounds, steps)
    merged = fsm.SuperNet(originals, setting.rank).fold().backbone
    return asdict(setting) | {"matmul_rate": rate, "memory_mb": memory, "operations": operations, "seconds": times,
                              "latency": latencies({"merged": merged, "original": originals[0]}, setting, 3 * rounds)}


# ---------------------------------------------------------------- what is written

def ratios(times: dict[str, list[float]], of: str, to: str) -> list[float]:
    """The ratio in every round, sorted."""
    return sorted(a / b for a, b in zip(times[of], times[to]))


def ratio(record: dict, of: str, to: str) -> str:
    """The median of a ratio and its range over rounds; a dash if one of the two did not run."""
    times = record["seconds"] | record["latency"]
    if of not in times:
        return "–"
    rounds = ratios(times, of, to)
    return f"{statistics.median(rounds):.2f} ({rounds[0]:.2f} to {rounds[-1]:.2f})"


def ratio_of_operations(record: dict, kind: str = "folded") -> str:
    """Operations of a step, as a multiple of distillation's; a dash if the kind did not run."""
    operations = record["operations"]
    return f"{operations[kind] / operations['distillation']:.2f}" if kind in operations else "–"


def ratio_of_memory(record: dict, kind: str) -> str:
    """Peak memory as a multiple of distillation's; a dash if the kind did not run."""
    memory = record["memory_mb"]
    return f"{memory[kind] / memory['distillation']:.2f}" if kind in memory else "–"


def share_of_rate(record: dict, kind: str) -> str:
    """The rate of operations of a step in percent of the machine's rate of matrix products."""
    if "matmul_rate" not in record or kind not in record["seconds"]:
        return "–"
    seconds = statistics.median(record["seconds"][kind])
    return f"{100 * record['operations'][kind] / seconds / record['matmul_rate']:.0f}"


def row(record: dict) -> dict[str, object]:
    """One row of the table: column -> cell. Spaces make repeated titles different keys."""
    return {
        "ViT": record["model"], "k": record["k"], "rank": record["rank"], "images": record["batch"],
        "pixels": record["pixels"], "": f"{record['device']} {record['precision']}",
        "distillation, s": f"{statistics.median(record['seconds']['distillation']):.3g}",
        "folded": ratio(record, "folded", "distillation"), "by operations": ratio_of_operations(record),
        "A, B shared": ratio(record, "shared", "distillation"),
        "A, B shared by operations": ratio_of_operations(record, "shared"),
        "W* recomputed": ratio(record, "recomputed", "distillation"),
        "unfolded": ratio(record, "unfolded", "distillation"),
        "unfolded / folded": ratio(record, "unfolded", "folded"),
        "memory: folded": ratio_of_memory(record, "folded"), "recomputed": ratio_of_memory(record, "recomputed"),
        "unfolded ": ratio_of_memory(record, "unfolded"), "latency": ratio(record, "merged", "original"),
        "% of matmul rate: distillation": share_of_rate(record, "distillation"),
        "folded ": share_of_rate(record, "folded")}


def table(records: list[dict]) -> str:
    """One row for each setting, in Markdown, without the columns that nothing was measured for."""
    rows = [row(record) for record in sorted(records, key=lambda record: list(VITS).index(record["model"]))]
    empty = [title for title in rows[0] if all(cells[title] == "–" for cells in rows)]
    rows = [{title: cell for title, cell in cells.items() if title not in empty} for cells in rows]
    lines = [f"| {' | '.join(title.strip() for title in rows[0])} |", "|---|" + "---:|" * (len(rows[0]) - 1)]
    return "\n".join(lines + [f"| {' | '.join(map(str, cells.values()))} |" for cells in rows])


def growth(records: list[dict]) -> str:
    """How more originals, a higher rank and fewer tokens change the ratio of times and the ratio of operations."""
    lines = []
    for model, device, precision in dict.fromkeys((r["model"], r["device"], r["precision"]) for r in records):
        base = replace(settings(model, device)[0], precision=precision)
        half = base.pixels // 2
        varied = {"k = 2": base, "k = 4": replace(base, k=4), "k = 8": replace(base, k=8),
                  "rank 32": replace(base, rank=32), f"{half} pixels": replace(base, pixels=half)}
        costs = [f"{name}: {ratio(r, 'folded', 'distillation').split()[0]} ({ratio_of_operations(r)})"
                 for name, setting in varied.items() for r in records if r.items() >= asdict(setting).items()]
        lines.append(f"- ViT-{model}, {device} {precision}: {', '.join(costs)}")
    return "\n".join(["How the cost of a folded step grows (in brackets: by the count of operations):", "", *lines])


def lines_by_k(records: list[dict]) -> dict[str, dict[str, dict[int, float]]]:
    """For the figure: title -> line -> k -> ratio to distillation."""
    panels: dict[str, dict] = {}
    for record in records:
        base = settings(record["model"], record["device"])[0]
        if (record["rank"], record["pixels"], record["batch"]) != (base.rank, base.pixels, base.batch):
            continue
        lines = panels.setdefault(f"ViT-{record['model']}, {record['device']} {record['precision']}", {})
        for kind, name in (("unfolded", "unfolded"), ("recomputed", "folded, W* recomputed"), ("folded", "folded")):
            if kind in record["seconds"]:
                cost = statistics.median(ratios(record["seconds"], kind, "distillation"))
                lines.setdefault(name, {})[record["k"]] = cost
        lines.setdefault("folded, by operations", {})[record["k"]] = float(ratio_of_operations(record))
    return panels


def write(records: list[dict], out: Path) -> str:
    """Write step.json, step.md and step.png. Returns the text of step.md."""
    write_whole(out / "step.json", (json.dumps(records, indent=0) + "\n").encode())
    text = (f"`python benchmarks/step.py`: one training step, as a multiple of a distillation step (median and range "
            f"over rounds).\n\n{table(records)}\n\n{growth(records)}\n")
    write_whole(out / "step.md", text.encode())
    write_whole(out / "step.png", figures.png(figures.growth(lines_by_k(records))))
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
    done = [Setting(*(record[field.name] for field in fields(Setting))) for record in records]
    missing = [setting for model in given.models for setting in settings(model, device) if setting not in done]
    for setting in tqdm(missing, desc="step"):
        records.append(measure(setting, given.rounds, 20 if setting.model == "tiny" else 1))
        write(records, given.out)
    print(table(records))


if __name__ == "__main__":
    main()
