"""What is measured of emkit, in a process of its own: one merge, WUDI in one of two forms, or Ridge's one solution.

``python -m emkit.bench.child merge '["METHOD", "BASE", "OUT", ["EXPERT", …], SCALE, {OPTIONS}]'``, or ``wudi`` with the
arguments of :func:`iterate`; what the function returns is printed as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from emkit.checkpoints import Checkpoint
from emkit.content import default_device
from emkit.job import Job
from emkit.merging import Context
from emkit.methods import get, resolved
from emkit.methods.ridge import ridge_matrix
from emkit.methods.wudi import wudi, wudi_matrix
from emkit.shards import SHARD_BYTES
from emkit.task_vectors import TaskVectors

FORMS = ("emkit", "direct")  # of WUDI's iterations: in Gram matrices, and as its authors write and run them
RIDGE = "ridge"  # WUDI's objective with a ridge, solved at once


def merge(
    method: str,
    base: str,
    out: str,
    experts: list[str],
    scale: float | None,
    options: dict,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Merge all tensors of ``experts`` by ``method`` into the checkpoint folder ``out``."""
    found = get(method)
    vectors = TaskVectors(Checkpoint.open(base), {Path(path).name: Checkpoint.open(path) for path in experts}, list)
    context = Context(task_vectors=vectors, options=resolved(found, options), scale=scale, device=default_device())
    job = Job(found, context)
    job.write(job.run(), Path(out), shard_bytes=shard_bytes)


def iterate(form: str, rows: int, columns: int, experts: int, iterations: int) -> dict:
    """Seconds that one form takes for random task vectors [experts, rows, columns], and a few entries of its M; Ridge
    knows no ``iterations``."""
    generator = torch.Generator().manual_seed(0)
    taus = (torch.randn(experts, rows, columns, generator=generator) * 5e-4).to(default_device())
    runs: dict[str, Callable] = {
        "direct": wudi,
        "emkit": lambda taus, lr, steps: wudi_matrix(taus, "adam", lr, steps),
        RIDGE: lambda taus, lr, steps: ridge_matrix(taus),
    }
    run = runs[form]
    run(taus[:, :8, :8], 1e-5, 1)  # what torch imports at the first step is not part of it
    started = time.perf_counter()
    found = run(taus, 1e-5, iterations)
    entries = found.reshape(-1)[:: max(found.numel() // 100, 1)].tolist()  # waits for the device, too
    return {"seconds": time.perf_counter() - started, "entries": entries}


if __name__ == "__main__":
    measured: Callable = merge if sys.argv[1] == "merge" else iterate
    print(json.dumps(measured(*json.loads(sys.argv[2]))))
