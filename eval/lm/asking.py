"""A column that lm-evaluation-harness asks and scores itself."""

from __future__ import annotations

from pathlib import Path

from emkit.progress import report
from eval.asking import Judged, Merged, Prompt
from eval.columns.kinds import LMEval
from eval.lm import client


def prompts(data: Path, column: LMEval, seconds: float | None) -> list[Prompt]:
    """Every question as the harness puts it, without worked examples."""
    return [Prompt(*one) for one in client.prompts(data, column, seconds or client.REQUEST_SECONDS)]


def ask(merged: Merged, column: LMEval, judged: Judged) -> tuple[list[dict], dict]:
    """Items and harness of one column."""
    plan = merged.plan
    data, limit = plan.data(merged.job.split), plan.protocol.request_seconds or client.REQUEST_SECONDS
    merged.close()  # a GPU has room for one copy of the model: the harness's
    report("asked and scored by lm-evaluation-harness")
    journal, batch = merged.journal(column.name), plan.protocol.generation.batch
    asked = (data, [column], merged.folder, plan.dtype, plan.profile.device)
    found = client.evaluate(*asked, seconds=limit, batch=batch, journal=journal)[column.name]
    return found.items, found.harness
