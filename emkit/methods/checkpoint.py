"""One model as it is, in a row of a table: the base, an expert, or the mixture-trained one. Nothing is merged."""

from __future__ import annotations

from emkit.merging import Context, Merge
from emkit.methods import method


@method("checkpoint", "model")
def merge(ctx: Context) -> Merge:
    assert ctx.model is not None  # by its needs
    return Merge(ctx.model.read, ctx.model)
