"""Rows against each other, paired over items: what the table's standard errors cannot show."""

from __future__ import annotations

from collections.abc import Sequence

from emkit.errors import UserError
from eval import scores, stats
from eval.plan import Job, Plan
from eval.tables import AVERAGE, Entry, grid


def row_items(plan: Plan, row: str, benchmark: str) -> list[dict]:
    """A row's items on one benchmark that all its seeds have; an item's score is its mean over the seeds."""
    runs = [scores.read_items(plan.needed(plan.cell(Job(row, seed), benchmark))) for seed in plan.seeds(row)]
    by_index = [{item["index"]: item["score"] for item in run} for run in runs]
    return [
        item | {"score": sum(scored[item["index"]] for scored in by_index) / len(by_index)}
        for item in runs[0]
        if all(item["index"] in scored for scored in by_index)
    ]


def shared(first: list[dict], second: list[dict]) -> tuple[list[dict], list[dict]]:
    """The items that both lists have: a judge's unparsable reply leaves an item out of one row and not of another."""
    both = {item["index"] for item in first} & {item["index"] for item in second}
    return tuple([item for item in items if item["index"] in both] for items in (first, second))


def compare(plan: Plan, pairs: Sequence[tuple[str, str]]) -> list[dict]:
    """First row minus second row, in percentage points, on every benchmark and on Avg, with 95 % intervals.

    A row of the result: ``rows``, ``benchmark``, ``delta``, ``low``, ``high``, ``p`` and ``holm`` (p adjusted over the
    comparisons of the same benchmark, so over ``pairs``). Seeds are averaged item by item, so the intervals speak of
    other items, not of other calibration draws.
    """
    for row in dict.fromkeys(row for pair in pairs for row in pair):
        if row not in plan.rows or not plan.runs(row):
            raise UserError(f"{plan.path} does not run the row '{row}', which is compared here: add it to the recipe")
    found = []
    for benchmark in [*plan.benchmarks, AVERAGE]:
        names = plan.benchmarks if benchmark == AVERAGE else [benchmark]
        results = []
        for first, second in pairs:
            items = [shared(row_items(plan, first, name), row_items(plan, second, name)) for name in names]
            results.append(
                stats.paired_average_difference(items) if benchmark == AVERAGE else stats.paired_difference(*items[0])
            )
        for pair, result, adjusted in zip(pairs, results, stats.holm([result.p for result in results])):
            labels = " − ".join(plan.rows[row]["label"] for row in pair)
            found.append({"rows": labels, "benchmark": benchmark, **result._asdict(), "holm": adjusted})
    return found


def verdict(comparison: dict, level: float = 0.05) -> str:
    """A comparison in words, by a rule fixed before any run: ahead or behind if Holm's p is below ``level``."""
    if not comparison["holm"] < level:
        return "no difference shown"
    return "ahead" if comparison["delta"] > 0 else "behind"


def seed_interval(plan: Plan, row: str) -> tuple[float, float, float]:
    """Mean and 95 % t interval of the row's Avg over its seeds: what another calibration draw would change."""
    averages = []
    for seed in plan.seeds(row):
        cells = [scores.read_cell(plan.needed(plan.cell(Job(row, seed), name))) for name in plan.benchmarks]
        averages.append(sum(cell.value for cell in cells) / len(cells))
    return stats.t_interval(averages)


def reach(plan: Plan, lines: Sequence[Entry]) -> list[dict]:
    """Per benchmark in percent: the base, the column's own expert, that expert with its unmerged tensors reset to the
    base, and which of the experts leads the column."""
    table = grid(lines)
    rows = {(row["method"], row.get("model")): row["label"] for row in plan.recipe.rows}
    experts = {name: rows[("checkpoint", name)] for name in plan.recipe.experts if ("checkpoint", name) in rows}
    found = []
    for benchmark in plan.benchmarks:
        own = plan.paper.experts[benchmark]
        labels = {"base": rows.get(("checkpoint", "base")), "expert": experts.get(own)}
        labels["merged tensors only"] = rows.get(("reset_expert", own))
        scored = {name: table[label][benchmark].score for name, label in labels.items() if label in table}
        leader = max(experts, key=lambda name: table[experts[name]][benchmark].score or 0.0)
        found.append({"benchmark": benchmark, "own expert": own, **scored, "leading expert": leader})
    return found


def as_markdown(records: Sequence[dict]) -> str:
    """Records with equal keys as a Markdown table; numbers with two decimals, p values with three."""
    keys = list(dict.fromkeys(key for record in records for key in record))
    lines = ["| " + " | ".join(keys) + " |", "|---" * len(keys) + "|"]
    for record in records:
        texts = [_text(key, record.get(key)) for key in keys]
        lines.append("| " + " | ".join(texts) + " |")
    return "\n".join(lines)


def _text(key: str, value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if key in ("p", "holm") else f"{value:.2f}"
    return "–" if value is None else str(value)
