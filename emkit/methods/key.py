"""What a merge depends on, as one hash: a killed merge goes on only as the very merge that it was."""

from __future__ import annotations

import torch

from emkit.content import code_sha256, processor
from emkit.files import sha256_json
from emkit.merging import Context, Merge


def content_key(ctx: Context, method: str, merge: Merge) -> str:
    """Hash over the method with all its values, the input files, emkit's code, and what else may decide a bit.

    Input files count as the same while nobody has touched them (:meth:`emkit.checkpoints.Checkpoint.identity`).
    Threads and processor are in it because matrix products and SVDs add in an order that may depend on them.
    """
    checkpoints = [merge.like, ctx.base, *ctx.task_vectors.checkpoints.values()]
    return sha256_json(
        {
            "method": method,
            "options": ctx.options.model_dump(),
            "model": None if ctx.model is None else ctx.model.identity(),
            "seed": ctx.seed,
            "scale": merge.scale,
            "coefficients": None if merge.coefficients is None else merge.coefficients.to_json(),
            "experts": ctx.task_vectors.experts,
            "inputs": [checkpoint.identity() for checkpoint in checkpoints],
            "names": ctx.task_vectors.names,
            "code": code_sha256(),
            "machine": [torch.__version__, torch.get_num_threads(), processor(ctx.device)],
        }
    )


def default_device() -> str:
    """Where SVDs and iterations run unless a recipe says otherwise: a GPU when there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"
