"""One table on several zoos that differ in their seeds alone: does what one zoo showed hold on others?

Each pair of rows is compared within each zoo, paired over items, and over the zoos in two ways: of other *items* with
these zoos (each item's scores averaged over the zoos first, for all zoos are asked the same items), and of other *zoos*
(a t interval over the zoos' differences; with two or three zoos it is wide, and rightly so).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from emkit.errors import UserError
from emkit.files import atomic_write
from eval import comparisons, render, stats
from eval.comparisons import signed
from eval.plan import Plan
from eval.render import NOT_RUN

HEADS = ("rows", "each zoo", "mean", "95 % interval, other items", "p (Holm)", "95 % interval, other zoos")


def opened(table: str, profiles: Sequence[str], results: str) -> list[Plan]:
    """A plan for each profile; ``UserError`` for fewer than two, for one twice, and where they ask other columns."""
    if len(profiles) < 2 or len(set(profiles)) < len(profiles):
        raise UserError("name two profiles or more, each once, such as mini mini-seed1 mini-seed2")
    plans = [Plan(table, profile, results) for profile in profiles]
    for plan in plans[1:]:
        if plan.benchmarks != plans[0].benchmarks or plan.protocol.name != plans[0].protocol.name:
            raise UserError(f"{plan.profile_path} asks other items than {plans[0].profile_path}: nothing pairs them")
    return plans


def text(plans: Sequence[Plan]) -> str:
    """Averages by zoo and the compared pairs, in Markdown."""
    first, names = plans[0], [plan.profile.name for plan in plans]
    rows = [row for row in first.rows if all(row in plan.rows for plan in plans)]
    averages = {row: [render.row_entries(plan, row)[-1] for plan in plans] for row in rows}
    lines = [f"# {first.table.title} on {len(plans)} zoos", "", __doc__.split("\n\n", 1)[1].strip(), ""]
    lines += ["| method | " + " | ".join(f"`{name}`" for name in names) + " |", "|---|" + "---:|" * len(names)]
    for row in rows:
        cells = [e.status if e.score is None else f"{e.score:.2f}\u00a0±\u00a0{e.stderr:.2f}" for e in averages[row]]
        lines.append(f"| {first.rows[row].label} | " + " | ".join(cells) + " |")
    for heading, pairs in (("Beyond the paper", first.table.compare_beyond), ("The paper's rows", first.table.compare)):
        known = [pair for pair in pairs if all(row in rows for row in pair)]
        lines += ["", f"## {heading}", "", "| " + " | ".join(HEADS) + " |", "|---|" + "---:|" * (len(HEADS) - 1)]
        lines += ["| " + " | ".join([found["rows"], *_cells(found)]) + " |" for found in compared(plans, known)]
    return "\n".join(lines) + "\n"


def compared(plans: Sequence[Plan], pairs: Sequence[Sequence[str]]) -> list[dict]:
    """Of each pair the difference of averages in percentage points: ``each`` zoo's, its mean over the zoos with the
    interval over ``items``, p by Holm's rule over the pairs, and the interval over ``zoos``. A pair that is not scored
    on every zoo has a ``status`` instead."""
    found, results = [], []
    for pair in pairs:
        within = [comparisons.compare(plan, [pair])[-1] for plan in plans]
        missing = next((each["status"] for each in within if "status" in each), None)
        entry: dict = {"rows": comparisons.named(plans[0], pair)}
        if missing is not None:
            found.append(entry | {"status": missing or NOT_RUN})
            continue
        result = stats.paired_average_difference([_together(plans, pair, name) for name in plans[0].benchmarks])
        deltas = [each["delta"] for each in within]
        found.append(entry | {"each": deltas, "items": result, "zoos": stats.t_interval(deltas)})
        results.append(result.p)
    for entry, adjusted in zip([e for e in found if "items" in e], stats.holm(results), strict=True):
        entry["holm"] = adjusted
    return found


def _together(plans: Sequence[Plan], pair: Sequence[str], benchmark: str) -> tuple[list[dict], list[dict]]:
    """The items of both rows on a benchmark, each item's score averaged over the zoos; those that all have."""
    both = [[comparisons.row_items(plan, row, benchmark) for plan in plans] for row in pair]
    indices = set.intersection(*({item["index"] for item in items} for of in both for items in of))
    means = []
    for of in both:
        scores = [{item["index"]: item["score"] for item in items} for items in of]
        kept = [item for item in of[0] if item["index"] in indices]
        means.append([item | {"score": sum(s[item["index"]] for s in scores) / len(scores)} for item in kept])
    return means[0], means[1]


def _cells(found: dict) -> list[str]:
    if "status" in found:
        return [found["status"], *["–"] * (len(HEADS) - 2)]
    result, (_, low, high) = found["items"], found["zoos"]
    each = ", ".join(signed(delta) for delta in found["each"])
    ends = [f"{signed(a)} to {signed(b)}" for a, b in ((result.low, result.high), (low, high))]
    return [each, signed(result.delta), ends[0], comparisons.p_value(found["holm"]), ends[1]]


def write(plans: Sequence[Plan]) -> Path:
    """Leave the text beside the first profile's table; returns its path."""
    path = plans[0].home / "tables" / f"{plans[0].name}-zoos.md"
    with atomic_write(path) as part:
        part.write_text(text(plans), encoding="utf-8")
    return path
