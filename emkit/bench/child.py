"""One merge by emkit in a process of its own, so that its time and memory can be measured from outside.

``python -m emkit.bench.child METHOD BASE OUT EXPERT…`` with the options that the comparison fixes (see
:data:`emkit.bench.merge.METHODS`).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from emkit.checkpoints import Checkpoint
from emkit.content import default_device
from emkit.job import Job
from emkit.merging import Context
from emkit.methods import get, resolved
from emkit.shards import SHARD_BYTES
from emkit.task_vectors import TaskVectors


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
    opened = Checkpoint.open(base)
    vectors = TaskVectors(opened, {Path(path).name: Checkpoint.open(path) for path in experts}, list)
    settings = resolved(found, options)
    context = Context(task_vectors=vectors, options=settings, scale=scale, device=default_device())
    job = Job(found, context)
    job.write(job.run(), out, shard_bytes=shard_bytes)


if __name__ == "__main__":
    name, base_folder, out_folder, settings, *folders = sys.argv[1:]
    given = json.loads(settings)
    merge(name, base_folder, out_folder, folders, given.pop("scale", None), given)
