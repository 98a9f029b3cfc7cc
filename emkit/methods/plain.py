"""Rows that merge nothing (a checkpoint as it is, an expert's merged tensors alone) and Weight Average."""

from __future__ import annotations

from emkit.checkpoints import Checkpoint
from emkit.combine.linear import mean_experts
from emkit.methods.assembly import replaced
from emkit.methods.registry import Context, Merge, method


@method()
def checkpoint(ctx: Context) -> Merge:
    """A model of the recipe as it is: the base, an expert, or the mixture-trained one."""
    found = Checkpoint.open(ctx.recipe.model(ctx.row["model"]))
    return Merge(found.read, found)


@method()
def reset_expert(ctx: Context) -> Merge:
    """An expert with its unmerged tensors reset to the base's: the most of this expert that merging can reach."""
    return Merge(replaced(ctx, ctx.task_vectors.checkpoints[ctx.row["model"]].read), ctx.base)


@method(parts=(mean_experts,))
def weight_average(ctx: Context) -> Merge:
    """Weight Average: the mean of the experts over the merged tensors; the base is not in the mean.

    (The authors' code scales the mean task vector by 0.1 unless told otherwise, which is no average.)
    """
    return Merge(replaced(ctx, lambda name: mean_experts(*ctx.task_vectors.read(name))), ctx.base)
