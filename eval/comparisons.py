"""Rows against each other, paired over items: what the table's standard errors cannot show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from eval import scores, stats
from eval.places import Job
from eval.plan import Plan
from eval.render import AVERAGE, NOT_RUN, Entry, grid, row_entries
from eval.table import published

HEADS = {  # what the columns of a comparison are called
    "rows": "first − second",
    "delta": "difference, points",
    "interval": "95 % interval",
    "holm": "p by Holm's rule",
    "paper": "the paper's difference",
    "verdict": "in words",
}
ONE_ROW = "one row with this profile"
NUMBERS = ("delta", "interval", "p", "holm", "paper")


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
    one, other = ([item for item in items if item["index"] in both] for items in (first, second))
    return one, other


def compare(plan: Plan, pairs: Sequence[Sequence[str]]) -> list[dict]:
    """First row minus second row, in percentage points, on every benchmark and on Avg, with 95 % intervals.

    A row of the result: ``rows``, ``benchmark``, ``delta``, ``low``, ``high``, ``p`` and ``holm`` (p adjusted over the
    comparisons of the same benchmark, so over ``pairs``). Seeds are averaged item by item, so the intervals speak of
    other items, not of other calibration draws. A pair with a row that has no score has one line, with Avg's
    ``status`` in place of numbers; so has a pair of two names for one row.
    """
    status = {row: _status(plan, row) for row in dict.fromkeys(row for pair in pairs for row in pair)}
    unlike = [pair for pair in pairs if not one_row(plan, pair)]
    scored = [pair for pair in unlike if all(status[row] == "ok" for row in pair)]
    found = []
    for benchmark in [*plan.benchmarks, AVERAGE]:
        names = plan.benchmarks if benchmark == AVERAGE else [benchmark]
        results = []
        for first, second in scored:
            items = [shared(row_items(plan, first, name), row_items(plan, second, name)) for name in names]
            results.append(
                stats.paired_average_difference(items) if benchmark == AVERAGE else stats.paired_difference(*items[0])
            )
        for pair, result, adjusted in zip(scored, results, stats.holm([result.p for result in results])):
            found.append({"rows": named(plan, pair), "benchmark": benchmark, **result._asdict(), "holm": adjusted})
    for pair in pairs:
        if pair not in scored:
            why = next(status[row] for row in pair if status[row] != "ok") if pair in unlike else ONE_ROW
            found.append({"rows": named(plan, pair), "benchmark": AVERAGE, "status": why})
    return found


def one_row(plan: Plan, pair: Sequence[str]) -> bool:
    """Whether the profile makes both rows the same (:meth:`eval.configured.Configured.scored`)."""
    return len({plan.scored(row) if row in plan.rows else row for row in pair}) == 1


def _status(plan: Plan, row: str) -> str:
    """Whether a row has a score on every benchmark (``ok``), else what is wrong with the first that has none."""
    return row_entries(plan, row)[-1].status if row in plan.rows else NOT_RUN


def named(plan: Plan, pair: Sequence[str]) -> str:
    """What a pair of rows is called."""
    labels = {row.id: row.label for row in plan.table.rows}
    return " − ".join(labels[row] for row in pair)


def published_difference(plan: Plan, pair: Sequence[str], benchmark: str = AVERAGE) -> float | None:
    """First row minus second row in the paper's table, in points; None where it has not both."""
    labels, known = {row.id: row.label for row in plan.table.rows}, published(plan.table)
    first, second = (known.get(labels[row], {}).get(benchmark) for row in pair)
    return None if first is None or second is None else first - second


def verdicts(comparisons: Sequence[dict]) -> list[dict]:
    """The comparisons of averages, each with its :func:`verdict` in words."""
    kept = [comparison for comparison in comparisons if comparison["benchmark"] == AVERAGE]
    numbers = ("rows", "benchmark", "delta", "low", "high", "p", "holm")
    return [{key: of.get(key) for key in numbers} | {"verdict": verdict(of)} for of in kept]


def interval(comparison: dict) -> str | None:
    """A comparison's interval as a text; None where it has none."""
    if comparison.get("low") is None:
        return None
    return f"{comparison['low']:.2f} to {comparison['high']:.2f}".replace("-", "−").replace(" ", "\u00a0")


def signed(value: float, digits: int = 1) -> str:
    """A number with its sign, and never −0."""
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")


def verdict(comparison: dict, level: float = 0.05) -> str:
    """A comparison in words, by a rule fixed before any run: ahead or behind if Holm's p is below ``level``."""
    if "status" in comparison:
        return comparison["status"]
    if not comparison["holm"] < level:
        return "no difference shown"
    return "ahead" if comparison["delta"] > 0 else "behind"


def seed_intervals(plan: Plan, rows: Sequence[str]) -> list[dict]:
    """Per row: mean and 95 % t interval of its Avg over its seeds, that is, what another calibration draw changes."""
    found: list[dict] = []
    for row in rows:
        if _status(plan, row) != "ok":
            found.append({"row": named(plan, [row]), "status": _status(plan, row)})
            continue
        cells = [[scores.read_cell(plan.cell(Job(row, s), name)) for name in plan.benchmarks] for s in plan.seeds(row)]
        mean, low, high = stats.t_interval(
            [sum(cell.value for cell in of if cell.value is not None) / len(of) for of in cells]
        )
        found.append({"row": named(plan, [row]), "mean": mean, "low": low, "high": high})
    return found


def reach(plan: Plan, lines: Sequence[Entry]) -> list[dict]:
    """Per benchmark in percent: the base, the column's own expert, that expert with its unmerged tensors reset to the
    base, and which of the experts leads the column."""
    table = grid(lines)
    rows = {(row.method, row.model): row.label for row in plan.rows.values()}
    experts = {name: rows["checkpoint", name] for name in plan.profile.models.experts if ("checkpoint", name) in rows}
    found = []
    for benchmark, own in plan.experts.items():
        labels = {"base": rows.get(("checkpoint", "base")), "expert": experts.get(own)}
        labels["merged tensors only"] = rows.get(("reset_expert", own))
        entries = {name: table[label][benchmark] for name, label in labels.items() if label in table}
        shown = {name: entry.status if entry.score is None else entry.score for name, entry in entries.items()}
        leader = _leader({name: table[label][benchmark] for name, label in experts.items()})
        found.append({"benchmark": benchmark, "own expert": own, **shown, "leading expert": leader})
    return found


def _leader(entries: Mapping[str, Entry]) -> str | None:
    """The expert with the highest score; the status of the first that has none, as then nobody knows who leads."""
    without = next((entry.status for entry in entries.values() if entry.score is None), None)
    return without or max(entries, key=lambda name: entries[name].score or 0.0, default=None)


def as_markdown(records: Sequence[dict]) -> str:
    """Records with equal keys as a Markdown table; numbers on the right, with two decimals, p values with three."""
    keys = list(dict.fromkeys(key for record in records for key in record))
    numbers = [any(isinstance(record.get(key), float) for record in records) or key in NUMBERS for key in keys]
    lines = ["| " + " | ".join(HEADS.get(key, key) for key in keys) + " |"]
    lines.append("|" + "|".join("---:" if number else "---" for number in numbers) + "|")
    for record in records:
        texts = [_text(key, record.get(key)) for key in keys]
        lines.append("| " + " | ".join(texts) + " |")
    return "\n".join(lines)


def _text(key: str, value: object) -> str:
    if isinstance(value, float) and math.isnan(value):
        return "–"  # one seed has no interval
    if isinstance(value, float):
        return p_value(value) if key in ("p", "holm") else f"{value:.2f}"
    return "–" if value is None else str(value)


def p_value(p: float) -> str:
    """A p value as it is written: three decimals, never 0, and in one line."""
    return "<\u00a00.001" if p < 0.001 else f"{p:.3f}"
