"""One expert with its unmerged tensors reset to the base's: the most of this expert that merging can reach."""

from __future__ import annotations

from emkit.merging import Context, Merge, replaced
from emkit.methods import method


@method("reset_expert", "expert")
def merge(ctx: Context) -> Merge:
    assert ctx.model is not None  # by its needs
    return Merge(replaced(ctx, ctx.model.read), ctx.base)
