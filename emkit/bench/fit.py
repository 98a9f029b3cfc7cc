"""``emkit bench fit``: what the alignment engine promises, measured in one run, as ratios."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from transformers.utils.logging import disable_progress_bar

from emkit.alignment.merged_model import MergedModel
from emkit.alignment.placement import OnDevice, Placement
from emkit.bench import fit_cuda, measure, passes, report
from emkit.bench.passes import Case
from emkit.bench.report import Line
from emkit.bench.workload import FIFTY_MILLION, TOY, Workload, make

SAMPLES, TOKENS, TAKEN, EXPERTS = 8, 256, 128, 5
FEW = 2  # samples for which the authors' procedure is timed: it takes one at a time, so that four times that is all


def main(out: Path, rounds: int, threads: int) -> int:
    """Run everything, print the table and leave it in ``out``; 1 where a promise was missed."""
    torch.set_num_threads(threads)
    disable_progress_bar()
    about = report.stated(f"emkit bench fit --rounds {rounds} --threads {threads}")
    with tempfile.TemporaryDirectory() as folder:
        lines = [gradients(make(TOY, Path(folder) / "toy", 3, 6, 40, 20))]
        workload = make(FIFTY_MILLION, Path(folder) / "fifty", EXPERTS, SAMPLES, TOKENS, TAKEN)
        lines += memory(workload)
        lines += times(workload, rounds)
        merged = sum(workload.task_vectors().numel(name) for name in workload.task_vectors().names)
    notes = [
        f"InternVL's shape, {FIFTY_MILLION.hidden} wide, {FIFTY_MILLION.layers} blocks, {merged / 1e6:.0f} million "
        f"merged parameters, K = {EXPERTS}, {SAMPLES} samples of {TOKENS} tokens with losses at {TAKEN} of each, fp32, "
        f"one micro-batch, {threads} threads; a bare pass is forward, backward and gradients of all merged weights, "
        "each freed as it comes, a step forward, backward, contraction and the update of coefficients and weights.",
        f"Times are medians over {rounds} rounds in which all cases alternate; a ratio is the median of the rounds' "
        "own ratios, so that other load on the machine falls on both sides. Seconds are of the wall clock; the ratio "
        f"of the processor's own seconds stands beside them. The authors' procedure is timed on {FEW} samples, times "
        f"{SAMPLES // FEW}.",
        "Memory is the peak of RssAnon in a process of its own; extra is what is left after a bare pass (model and "
        "activations, logits over the whole vocabulary among them, which the engine never holds: hence less than "
        "nothing) and the resident task vectors are taken away.",
        fit_cuda.NOTE,
    ]

    def leave(gpu: list[Line]) -> str:
        value, text = report.promises("Fitting coefficients", about, lines + gpu, notes)
        report.leave(out / "fit", value, text)
        return text

    leave(fit_cuda.unmeasured("it broke off"))  # whatever happens on a GPU, these lines are not lost
    gpu = fit_cuda.measure() if torch.cuda.is_available() else fit_cuda.unmeasured("no CUDA device")
    print(leave(gpu))
    return int(any(line.verdict == "missed" for line in lines + gpu))


def gradients(workload: Workload) -> Line:
    """The engine's coefficient gradients against autograd's through every task vector, fp32."""
    start, case = workload.start(), Case.of(workload)
    plain = passes.plain(Case.of(workload), whole=True)(start)
    expected = np.concatenate([plain[name].double().numpy() for name in start.values])
    merged = MergedModel(case.model, case.vectors, start, case.backbone.parameter_name)
    case.problem(case.vectors).losses(0, engine=case.engine)
    error = np.abs(merged.gradient().numpy() - expected).max() / np.linalg.norm(expected)
    what = "gradients against autograd, a toy of the same architecture"
    return Line(what, 1e-6, float(error), unit="", details="largest difference / norm")


def times(workload: Workload, rounds: int) -> list[Line]:
    """A full step against a bare pass and the authors' procedure, in alternating rounds."""
    teachers = {task: workload.model(f"expert{k}") for k, task in enumerate(workload.calibration.tasks)}
    start = workload.start()
    plain = passes.plain(Case.of(workload), teachers, few=FEW)
    walls: dict[str, list[float]] = {"bare": [], "device": [], "rows": [], "files": [], "authors": []}
    cpus: dict[str, list[float]] = {name: [] for name in walls}
    with ExitStack() as stack:
        vectors = workload.task_vectors()
        resident, streamed = OnDevice(vectors, "cpu", torch.float32), Placement(vectors, "cpu")
        cases: dict[str, Callable] = {
            "bare": passes.bare(Case.of(workload)),
            "device": stack.enter_context(passes.step(Case.of(workload), resident, start)),
            "rows": stack.enter_context(passes.step(Case.of(workload), resident, workload.start(by_row=True))),
            "files": stack.enter_context(passes.step(Case.of(workload), streamed, start)),
            "authors": lambda: plain(start),
        }
        for round_ in range(rounds + 1):  # the first warms up
            print(f"times: round {round_} of {rounds}", file=sys.stderr, flush=True)
            for name, case in cases.items():
                wall, cpu = time.perf_counter(), time.process_time()
                case()
                if round_:
                    all_samples = SAMPLES / FEW if name == "authors" else 1
                    walls[name].append((time.perf_counter() - wall) * all_samples)
                    cpus[name].append((time.process_time() - cpu) * all_samples)

    def line(what: str, limit: float | None, over: str, under: str, most: bool = True) -> Line:
        ratio, cpu = (statistics.median(a / b for a, b in zip(of[over], of[under])) for of in (walls, cpus))
        seconds = f"{statistics.median(walls[over]):.2f} s / {statistics.median(walls[under]):.2f} s"
        return Line(what, limit, ratio, most, details=f"{seconds}; in processor time {cpu:.3g}×")

    return [
        line("a full step, task vectors on the device / bare forward and backward", 1.25, "device", "bare"),
        line("the same, streamed from the files", None, "files", "bare"),
        line("a full step with a coefficient for every row / one with one for every tensor", 2.0, "rows", "device"),
        line("the authors' procedure / a full step", 3.0, "authors", "device", most=False),
    ]


def memory(workload: Workload) -> list[Line]:
    """Peaks in processes of their own: ours against functional_call's, and K = 2 against K = 16 from the files."""
    bare, extra = _peak("bare", workload, EXPERTS)[0], {}
    for case in ("device", "plain", "files"):
        peak, resident = _peak(case, workload, EXPERTS)
        extra[case] = peak - bare - resident
    few, many = (_peak("files", workload, k)[0] for k in (2, 16))
    mib = {case: f"{value / 2**20:.0f} MiB" for case, value in extra.items()}
    beside = f"from the files {mib['files']}; model and activations {bare / 2**20:.0f} MiB"
    what = "extra memory of a step / functional_call's"
    return [
        Line(what, 0.2, extra["device"] / extra["plain"], details=f"{mib['device']} / {mib['plain']}; {beside}"),
        Line(
            "memory from the files, K = 16 / K = 2",
            1.1,
            many / few,
            details=f"{many / 2**20:.0f} MiB / {few / 2**20:.0f} MiB",
        ),
    ]


def _peak(case: str, workload: Workload, experts: int) -> tuple[float, int]:
    """Bytes: the largest anonymous memory of a pass in a process of its own, and its resident task vectors."""
    # every large block is given back at once, so that the peak is of what is in use
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "emkit.bench.passes", case, workload.folder, experts]
    cost = measure.run(command, environment)
    return cost.anonymous_mb * measure.MB, int(cost.output.split()[-1])
