"""Mistral-7B's shape on a GPU: random bf16 weights, three experts, 15 samples of 512 tokens."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import MistralConfig, MistralForCausalLM

from emkit import backbones
from emkit import fit as fitting
from emkit.bench.fit_toys import MISTRAL_7B
from emkit.bench.report import Line
from emkit.calibration import Calibration, TaskSamples
from emkit.checkpoints import TensorInfo
from emkit.coefficients import Coefficients
from emkit.engine.logits import headless
from emkit.engine.options import EngineOptions
from emkit.engine.placement import InHost, OnDevice, Placement, place
from emkit.engine.variable import Optimiser, Variable
from emkit.fit import FitOptions
from emkit.sequences import Folded, collate
from emkit.task_vectors import TaskVectors

EXPERTS, SAMPLES, TOKENS, ROUNDS = 3, 15, 512, 5
OPTIONS = FitOptions(hidden_weight=0.1, optimiser=Optimiser(lr=1e-3, steps=100, schedule="constant"))
PROMISES = {
    "device": ("Mistral-7B, K = 3, 15 × 512 tokens, bf16: a full step, task vectors on the device / bare", 1.3),
    "host": ("the same, task vectors streamed from host memory / bare", 2.0),
    "fit": ("a whole fit told --memory 24GiB: peak of device memory, GiB", 24.0),
    "flops": ("bare pass: share of a matrix product's FLOP/s", None),
    "bandwidth": ("contraction: share of a copy's bandwidth", None),
}


class Drawn:
    """A checkpoint of random bf16 tensors in host memory: what merging uses of a :class:`Checkpoint`."""

    def __init__(self, names: list[str], shapes: dict, base: Drawn | None = None, seed: int = 0):
        self.path, self.names = Path(f"drawn-{seed}"), sorted(names)
        generator = torch.Generator(device="cuda").manual_seed(seed)
        self.tensors = {}
        for name in self.names:
            values = torch.randn(shapes[name], generator=generator, device="cuda") * (0.02 if base is None else 5e-4)
            values = values if base is None else values + base.tensors[name].cuda().float()
            self.tensors[name] = values.to(torch.bfloat16).cpu()

    def info(self, name: str) -> TensorInfo:
        return TensorInfo(self.tensors[name].dtype, tuple(self.tensors[name].shape))

    def read(self, name: str) -> torch.Tensor:
        return self.tensors[name]


def measure() -> list[Line]:
    """Every promise of :data:`PROMISES`; one that does not fit this GPU is told as not run."""
    torch.manual_seed(0)
    backbone = backbones.get("mistral")
    with torch.device("meta"):
        model = MistralForCausalLM(MistralConfig(**MISTRAL_7B.text(), sliding_window=None))
    shapes = {name: p.shape for name, p in model.named_parameters()}
    names = backbone.merged_names(shapes)
    base = Drawn(names, shapes)
    experts = {f"task{k}": Drawn(names, shapes, base, k + 1) for k in range(EXPERTS)}
    vectors = TaskVectors(base, experts, backbone.merged_names)
    with torch.device("cuda"):
        model = MistralForCausalLM(MistralConfig(**MISTRAL_7B.text(), sliding_window=None)).to(torch.bfloat16).eval()
    calibration = _calibration(backbone, model, list(experts))
    engine = EngineOptions(dtype="bfloat16", micro_tokens=SAMPLES * TOKENS, checkpointing=True)
    bare = _times(_bare(backbone, model, calibration, engine, set(names)))
    numel = sum(vectors.numel(name) for name in names)
    lines = []
    for kind, build in (("device", lambda: OnDevice(vectors, "cuda", None)), ("host", lambda: InHost(vectors, "cuda"))):
        what, limit = PROMISES[kind]
        try:
            found = _times(_step(backbone, model, build(), calibration, engine))
            lines.append(Line(what, limit, found / bare, details=f"{found:.2f} s / {bare:.2f} s"))
        except torch.cuda.OutOfMemoryError:
            lines.append(Line(what, limit, None, not_run="too little device memory"))
        torch.cuda.empty_cache()
    return [*lines, _whole_fit(backbone, model, vectors, calibration), *_ceilings(bare, numel)]


def _calibration(backbone, model, tasks: list[str]) -> Calibration:
    """Random tokens with losses at every second half; the base's own states stand for the teachers'."""
    rng, found = np.random.default_rng(0), {}
    for task in tasks:
        sequences, final, hidden = [], [], []
        for _ in range(SAMPLES // len(tasks)):
            at = np.arange(TOKENS)
            ids = rng.integers(4, MISTRAL_7B.words, TOKENS)
            sequences.append(Folded(ids, at, np.zeros(TOKENS, np.int64), (at >= TOKENS // 2).astype(float)))
            batch, taken = (_moved(part) for part in collate(sequences[-1:]))
            with torch.no_grad(), headless(model) as head:
                out = backbone.forward(model, batch, None, MISTRAL_7B.blocks // 2, taken)
            final.append(out.logits.float().cpu())
            hidden.append(out.hidden[taken].float().cpu())
        features, samples = [torch.zeros(0)] * len(sequences), list(range(len(sequences)))
        found[task] = TaskSamples(task, sequences, samples, features, final, hidden, [[]] * len(sequences), head)
    return Calibration(found, MISTRAL_7B.blocks // 2, {})


def _moved(part):
    return {name: value.cuda() for name, value in part.items()} if isinstance(part, dict) else part.cuda()


def _bare(backbone, model, calibration: Calibration, engine: EngineOptions, names: set[str]) -> Callable:
    from emkit.engine.losses import recomputed

    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    batch, taken = (_moved(p) for p in collate([s for t in calibration.tasks.values() for s in t.sequences]))
    target = batch["input_ids"].roll(-1, dims=1)[taken]

    def run() -> None:
        with recomputed(model, engine.checkpointing):
            logits = backbone.forward(model, batch, None, None, taken).logits
            torch.nn.functional.cross_entropy(logits, target).backward()
        model.zero_grad(set_to_none=True)

    return run


def _step(backbone, model, placement: Placement, calibration: Calibration, engine: EngineOptions) -> Callable:
    from emkit.engine.merged_model import MergedModel

    start = Coefficients.constant(placement.names, dict.fromkeys(placement.experts, 0.3))
    variable = Variable(start, "plain", OPTIONS.optimiser, start.flat(), device="cuda")
    merged = MergedModel(model, placement, start, backbone.parameter_name)
    steps, count = iter(range(10**9)), float(len(placement.names))

    def run() -> None:
        given = (backbone, model, merged, variable, start, calibration, OPTIONS, count)
        fitting._step(*given, next(steps), 0, engine)

    run.close = merged.close
    return run


def _times(run: Callable) -> float:
    """Median seconds of a call, the device's work included."""
    found = []
    for round_ in range(ROUNDS + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        if round_:
            found.append(time.perf_counter() - start)
    if hasattr(run, "close"):
        run.close()
    return statistics.median(found)


def _whole_fit(backbone, model, vectors: TaskVectors, calibration: Calibration) -> Line:
    """Three steps of a fit under a budget of 24 GiB, placement chosen by it."""
    what, limit = PROMISES["fit"]
    engine = EngineOptions(24 * 2**30, None, "bfloat16", SAMPLES * TOKENS, True)
    torch.cuda.reset_peak_memory_stats()
    start = Coefficients.constant(vectors.names, dict.fromkeys(vectors.experts, 0.3))
    options = FitOptions(optimiser=Optimiser(lr=1e-3, steps=3))
    placement = place(vectors, model, engine)
    fitting.fit(backbone, model, placement, start, dict.fromkeys(vectors.experts, 0.3), calibration, options,
                len(vectors.names), engine=engine)  # fmt: skip
    return Line(what, limit, torch.cuda.max_memory_allocated() / 2**30, unit=" GiB", details=placement.kind)


def _ceilings(bare: float, numel: int) -> list[Line]:
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    peak = 2 * 8192**3 / _times(lambda: a @ a)
    reached = 8 * numel * SAMPLES * TOKENS / bare  # two forwards, with activations computed again
    source = torch.empty(2**30, device="cuda", dtype=torch.uint8)
    target = torch.empty_like(source)
    copy = 2 * source.nbytes / _times(lambda: target.copy_(source))
    from emkit.engine.arithmetic import Arithmetic, Rows

    n = 2**26
    flat = torch.randn(n, device="cuda").to(torch.bfloat16)
    rows, sums = Rows(flat, [flat] * EXPERTS, False), Arithmetic("cuda", torch.float32)
    read = (2 * (EXPERTS + 1) + 2) * n / _times(lambda: sums.contract(rows, flat, [0, n]))
    return [
        Line(*PROMISES["flops"], reached / peak, details=f"{reached / 1e12:.0f} of {peak / 1e12:.0f} TFLOP/s"),
        Line(*PROMISES["bandwidth"], read / copy, details=f"{read / 1e9:.0f} of {copy / 1e9:.0f} GB/s"),
    ]
