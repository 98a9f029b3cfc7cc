"""A column that lm-evaluation-harness asks and scores itself."""

from __future__ import annotations

from emkit.progress import report
from eval.asking import Judged, Merged
from eval.columns.kinds import LMEval
from eval.lm import client


def ask(merged: Merged, column: LMEval, judged: Judged) -> tuple[list[dict], dict]:
    """Items and harness of one column."""
    plan = merged.plan
    data, limit = plan.data(merged.job.split), plan.protocol.request_seconds or client.REQUEST_SECONDS
    report("asked and scored by lm-evaluation-harness")
    found = client.evaluate(data, [column], merged.folder, plan.dtype, plan.profile.device, limit)[column.name]
    return found.items, found.harness
