"""A table's files as a run writes them: CSV, and a page in Markdown that says what its numbers rest on and show."""

from __future__ import annotations

from pathlib import Path

from emkit.errors import UserError
from emkit.files import atomic_write
from eval import claims, comparisons, render, sweeps
from eval.plan import Plan


def write(plan: Plan) -> None:
    """Write the table as Markdown and as CSV where the run keeps them; the CSV last, as it is what counts."""
    for path, text in texts(plan).items():
        with atomic_write(path) as part:
            part.write_text(text, encoding="utf-8")


def texts(plan: Plan) -> dict[Path, str]:
    """What each of the table's files says."""
    lines = render.entries(plan)
    page = render.as_markdown(lines, plan.table, plan.profile.name, sections(plan))
    return {plan.csv.with_suffix(".md"): page, plan.csv: render.as_csv(lines)}


def sections(plan: Plan) -> dict[str, str]:
    """Heading → text: of a table of claims what becomes of them and what its rows ran with, else their scales."""
    if not plan.table.claims:
        scales = render.scales(plan)
        return {"What task vectors were scaled by": scales} if scales else {}
    judged = claims.summary(plan, comparisons.compare(plan, plan.table.pairs))
    ran = f"{plan.table.prose.get('rows', '')}\n{comparisons.as_markdown(sweeps.ran_with(plan))}"
    return {"What becomes of the paper's claims": judged, "What the rows were run with": ran}


def is_current(plan: Plan) -> bool:
    """Whether the written table is what the score files say now."""
    try:
        return all(path.read_text(encoding="utf-8") == text for path, text in texts(plan).items())
    except (UserError, FileNotFoundError):
        return False
