"""``emkit bench fit``: what the alignment engine promises, measured in one run, as ratios."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers.utils.logging import disable_progress_bar

from emkit.alignment.merged_model import MergedModel
from emkit.bench import fit_cases, fit_cuda, report
from emkit.bench.fit_toys import FIFTY_MILLION, TOY, Workload, make
from emkit.bench.report import Line

SAMPLES, TOKENS, TAKEN, EXPERTS = 8, 256, 128, 5
FEW = 2  # samples for which the authors' procedure is timed: it takes one at a time, so that four times that is all


def main(out: Path, rounds: int, threads: int) -> int:
    """Run everything, print the table and leave it in ``out``; 1 where a promise was missed."""
    torch.set_num_threads(threads)
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        lines = gradients(Path(folder))
        workload = make("internvl", FIFTY_MILLION, Path(folder) / "fifty", EXPERTS, SAMPLES, TOKENS, TAKEN)
        lines += memory(workload)
        lines += times(workload, rounds)
    notes = [
        f"InternVL's shape with {_millions(FIFTY_MILLION)} million merged and unmerged language parameters "
        f"(width {FIFTY_MILLION.width}, {FIFTY_MILLION.blocks} blocks), K = {EXPERTS}, {SAMPLES} samples of {TOKENS} "
        f"tokens with losses at {TAKEN} of each, fp32, one micro-batch, {threads} threads; a step is forward, "
        "backward, contraction and the update of coefficients and weights.",
        f"Times are medians over {rounds} rounds in which all cases alternate; a ratio is the median of the rounds' "
        "own ratios, so that other load on the machine falls on both sides. Seconds are of the wall clock; the ratio "
        f"of the processor's own seconds stands beside them. The authors' procedure is timed on {FEW} samples, times "
        f"{SAMPLES // FEW}.",
        "Memory is the peak of RssAnon in a process of its own; extra is what is left after a pass that frees each "
        "weight gradient at once (model and activations, logits over the whole vocabulary among them, which the "
        "engine never holds: hence less than nothing) and the resident task vectors are taken away.",
    ]
    notes += fit_cuda.NOTES
    if torch.cuda.is_available():  # whatever happens there, these lines are not lost
        report.leave(out, "fit", "Fitting coefficients", lines + fit_cuda.unmeasured("it broke off"), notes)
    lines += cuda()
    text = report.leave(out, "fit", "Fitting coefficients", lines, notes)
    print(text)
    return int(any(line.verdict == "missed" for line in lines))


def _millions(shape) -> int:
    per_block = shape.width * (2 * shape.width + 2 * shape.width * shape.kv_heads // shape.heads + 3 * shape.inner)
    return round((shape.blocks * per_block + shape.words * shape.width) / 1e6)


# ---- gradients
def gradients(folder: Path) -> list[Line]:
    """The engine's coefficient gradients against autograd's through every task vector, fp32, toy size."""
    lines = []
    for name in ("internvl", "qwen2_vl", "mistral"):
        workload = make(name, TOY, folder / name, 3, 6, 40, 12)
        for chunks in (1, 3):
            start = workload.start(chunks)
            expected = fit_cases.plain(workload, workload.model(), None, whole=True)(start)
            expected = np.concatenate([expected[n].double().numpy().reshape(-1) for n in start.values])
            model = workload.model()
            merged = MergedModel(model, workload.task_vectors(), start, workload.backbone.parameter_name)
            fit_cases.problem(workload, model, workload.task_vectors()).losses(0, engine=fit_cases.ENGINE)
            error = np.abs(merged.gradient().numpy() - expected).max() / np.linalg.norm(expected)
            what = f"gradients against autograd, {name}, {chunks} chunk{'s' if chunks > 1 else ''} a tensor"
            lines.append(Line(what, 1e-6, float(error), unit="", details="largest difference / norm"))
    return lines


# ---- times
def times(workload: Workload, rounds: int) -> list[Line]:
    """A full step against a bare pass and the authors' procedure, in alternating rounds."""
    teachers = {task: workload.model(f"expert{k}") for k, task in enumerate(workload.calibration.tasks)}
    plain, start = fit_cases.plain(workload, workload.model(), teachers, few=FEW), workload.start()
    cases: dict[str, Callable] = {
        "bare": fit_cases.bare(workload, workload.model()),
        "device": fit_cases.engine(workload, workload.model(), fit_cases.placed(workload, "device")),
        "files": fit_cases.engine(workload, workload.model(), fit_cases.placed(workload, "files")),
        "authors": lambda: plain(start),
    }
    walls: dict[str, list[float]] = {name: [] for name in cases}
    cpus: dict[str, list[float]] = {name: [] for name in cases}
    for round_ in range(rounds + 1):
        print(f"times: round {round_} of {rounds}", file=sys.stderr, flush=True)
        for name, case in cases.items():
            if not round_ and name == "authors":
                continue
            wall, cpu = time.perf_counter(), time.process_time()
            case()
            if round_:  # the first warms up
                times = SAMPLES / FEW if name == "authors" else 1
                walls[name].append((time.perf_counter() - wall) * times)
                cpus[name].append((time.process_time() - cpu) * times)

    def line(what: str, limit: float | None, over: str, under: str, most: bool = True) -> Line:
        ratio = statistics.median(a / b for a, b in zip(walls[over], walls[under], strict=True))
        cpu = statistics.median(a / b for a, b in zip(cpus[over], cpus[under], strict=True))
        seconds = f"{statistics.median(walls[over]):.2f} s / {statistics.median(walls[under]):.2f} s"
        return Line(what, limit, ratio, most, details=f"{seconds}; in processor time {cpu:.3g}×")

    return [
        line("a full step, task vectors on the device / bare forward and backward", 1.25, "device", "bare"),
        line("the same, streamed from the files", None, "files", "bare"),
        line("the authors' procedure / a full step", 3.0, "authors", "device", most=False),
        *_ceilings(workload, statistics.median(walls["bare"])),
    ]


def _ceilings(workload: Workload, bare: float) -> list[Line]:
    """Achieved FLOP/s and bandwidth beside what a matrix product and a copy reach on this machine now."""
    a, b = torch.randn(2048, 512), torch.randn(512, 2752)
    peak = 2 * 2048 * 512 * 2752 / _seconds(lambda: a @ b)
    numel = sum(workload.task_vectors().numel(name) for name in workload.task_vectors().names)
    reached = 6 * numel * SAMPLES * TOKENS / bare
    source, target = torch.empty(2**26), torch.empty(2**26)
    copy = 2 * source.nbytes / _seconds(lambda: target.copy_(source))
    placement = fit_cases.placed(workload, "device")
    merged = MergedModel(workload.model(), placement, workload.start(), workload.backbone.parameter_name)
    gradient = {name: torch.randn_like(p).reshape(-1) for name, p in merged.parameters.items()}

    def contract() -> None:
        for name in merged.parameters:
            merged.arithmetic.contract(placement.rows(name), gradient[name], merged.bounds[name])

    read = 4 * numel * (workload.experts + 1) / _seconds(contract)
    return [
        Line("bare pass: share of a matrix product's FLOP/s", None, reached / peak, details=f"{reached / 1e9:.0f} of "
             f"{peak / 1e9:.0f} GFLOP/s"),
        Line("contraction: share of a copy's bandwidth", None, read / copy, details=f"{read / 1e9:.1f} of "
             f"{copy / 1e9:.1f} GB/s"),
    ]  # fmt: skip


def _seconds(call: Callable, repeats: int = 5) -> float:
    """The best of some repeats: the machine's ceiling, not its load."""
    call()
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found)


# ---- memory
def memory(workload: Workload) -> list[Line]:
    """Peaks in processes of their own: ours against functional_call's, and K = 2 against K = 16 from the files."""
    bare = _child("bare", workload, EXPERTS)["peak"]
    extra = {}
    for case in ("device", "plain", "files"):
        found = _child(case, workload, EXPERTS)
        extra[case] = found["peak"] - bare - found["resident"]
    few, many = (_child("files", workload, k)["peak"] for k in (2, 16))
    mib = {case: f"{value / 2**20:.0f} MiB" for case, value in extra.items()}
    return [
        Line("extra memory of a step / functional_call's", 0.2, extra["device"] / extra["plain"],
             details=f"{mib['device']} / {mib['plain']}; from the files {mib['files']}; model and activations "
             f"{bare / 2**20:.0f} MiB"),
        Line("memory from the files, K = 16 / K = 2", 1.1, many / few,
             details=f"{many / 2**20:.0f} MiB / {few / 2**20:.0f} MiB"),
    ]  # fmt: skip


def _child(case: str, workload: Workload, experts: int) -> dict:
    command = [sys.executable, "-m", "emkit.bench.fit_cases", case, str(workload.folder), str(experts)]
    # every large block is given back at once, so that the peak is of what is in use
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if found.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{found.stderr}")
    return json.loads(found.stdout.splitlines()[-1])


# ---- a GPU
def cuda() -> list[Line]:
    """Mistral-7B's shape on a GPU; without one, the same lines as not run."""
    return fit_cuda.measure() if torch.cuda.is_available() else fit_cuda.unmeasured("no CUDA device")
