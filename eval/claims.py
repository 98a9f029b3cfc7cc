"""What the paper says of a table, beside what ours shows: a verdict in words, by rules that were fixed before any run.

The rules speak of paired differences of averages over items (:mod:`eval.comparisons`), with 95 % intervals and p values
after Holm's correction over all pairs of the table:

* *ahead of* — shown: each difference is above 0 with p < 0.05; contradicted: one is below 0 with p < 0.05;
* *not behind* by a margin — shown: no interval of (other − row) reaches the margin; contradicted: one is all above it;
* *level with*, to a margin — shown: every interval lies within ± the margin; contradicted: one lies all outside.

What is neither is *not shown*, which says that these items cannot tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eval import comparisons
from eval.comparisons import signed
from eval.plan import Plan
from eval.render import AVERAGE
from eval.table import Claim

SHOWN, OPEN, CONTRADICTED = "shown", "not shown", "contradicted"


def judged(plan: Plan, compared: Sequence[Mapping]) -> list[dict]:
    """A line for each of the table's claims: what the paper says, where, its difference, ours, and the verdict.

    ``compared``: what :func:`eval.comparisons.compare` finds for the table's pairs.
    """
    averages = {each["rows"]: each for each in compared if each["benchmark"] == AVERAGE}
    return [_judged(plan, claim, averages) for claim in plan.table.claims]


def _judged(plan: Plan, claim: Claim, averages: Mapping[str, Mapping]) -> dict:
    found = [_difference(plan, (claim.row, other), averages) for other in claim.others]
    paper = [comparisons.published_difference(plan, (claim.row, other)) for other in claim.others]
    line = {"the paper says": f"{claim.says} ({claim.where})", "its differences": _range(paper)}
    missing = next((each["status"] for each in found if "status" in each), None)
    if missing is not None:
        return line | {"ours, points": "–", "in words": missing}
    return line | {"ours, points": _ours(found), "in words": verdict(claim, found)}


def verdict(claim: Claim, found: Sequence[Mapping]) -> str:
    """The claim's verdict; ``found``: the differences (row − other), with ``low``, ``high`` and ``holm``."""
    margin = claim.points or 0.0
    if claim.ahead_of:
        told = [comparisons.verdict(dict(each)) for each in found]
        shown, contradicted = all(word == "ahead" for word in told), "behind" in told
    elif claim.not_behind:  # other − row, whose interval is (−high, −low)
        shown = all(-each["low"] < margin for each in found)
        contradicted = any(-each["high"] > margin for each in found)
    else:
        shown = all(-margin < each["low"] and each["high"] < margin for each in found)
        contradicted = any(each["low"] > margin or each["high"] < -margin for each in found)
    return CONTRADICTED if contradicted else SHOWN if shown else OPEN


def _difference(plan: Plan, pair: Sequence[str], averages: Mapping[str, Mapping]) -> Mapping:
    """First row minus second, whichever way round the pair was compared."""
    there = averages.get(comparisons.named(plan, pair))
    if there is not None:
        return there
    back = averages[comparisons.named(plan, pair[::-1])]
    if "status" in back:
        return back
    return {**back, "delta": -back["delta"], "low": -back["high"], "high": -back["low"]}


def _ours(found: Sequence[Mapping]) -> str:
    """One difference with its interval; of several, how far they and their intervals reach."""
    if len(found) == 1:
        return f"{signed(found[0]['delta'], 2)} ({comparisons.interval(dict(found[0]))})"
    low, high = min(each["low"] for each in found), max(each["high"] for each in found)
    return f"{_range([each['delta'] for each in found])} (intervals from {signed(low, 2)} to {signed(high, 2)})"


def _range(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    ends = dict.fromkeys(signed(value, 2) for value in (min(known), max(known)))
    return " to ".join(ends)


def summary(plan: Plan, compared: Sequence[Mapping]) -> str:
    """The verdicts in one paragraph each, for the head of a notebook."""
    lines = judged(plan, compared)
    counts = {word: sum(line["in words"] == word for line in lines) for word in (SHOWN, OPEN, CONTRADICTED)}
    told = ", ".join(f"{count} {word}" for word, count in counts.items() if count)
    rest = len(lines) - sum(counts.values())
    told += (", " if told and rest else "") + (f"{rest} not to be told here" if rest else "")
    each = "\n".join(
        f"- **{line['in words']}**: {line['the paper says']}; ours {line['ours, points']}" for line in lines
    )
    return f"Of the paper's {len(lines)} claims on this table: {told}.\n\n{each}" if lines else "No claims are listed."
