"""One expert with its unmerged tensors reset to the base's: the most of this expert that merging can reach."""

from __future__ import annotations

from emkit.merging import Context, Merge, replaced
from emkit.methods import method


@method("reset_expert", "expert")
def merge(ctx: Context) -> Merge:
    expert = ctx.model
    assert expert is not None  # by its needs
    # an adapter's tensors are fp32, which a merge of it in the base's dtype cannot be
    return Merge(replaced(ctx, lambda name: expert.read(name).to(ctx.base.info(name).dtype)), ctx.base)
