"""What a table's scores say, in words that are computed: who leads, what is shown, where the paper says otherwise."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import stats as distributions

from eval import comparisons, render
from eval.comparisons import signed
from eval.plan import Plan
from eval.render import AVERAGE, Entry
from eval.table import published

Pairs = Sequence[Sequence[str]]
DRAWS = 4000  # of averages within their standard errors


def text(plan: Plan, lines: Sequence[Entry], compared: Sequence[dict], pairs: Pairs) -> str:
    """The conclusion in Markdown, a list of short paragraphs, from a table's lines and its compared ``pairs``."""
    averages = {label: row[AVERAGE] for label, row in render.grid(lines).items()}
    parts = [standing(averages), leaders(plan, lines, averages), beyond(plan, averages)]
    parts += shown(plan, compared, pairs)
    parts += [gains(plan, compared, pairs), order(plan, averages), *carried(plan, averages)]
    parts.append(above_mixture(plan, averages))
    return "\n".join(f"- {part}" for part in parts if part)


def standing(averages: Mapping[str, Entry]) -> str:
    """How many rows have every score, and which (of many: how many) have not, with the reason."""
    missing: dict[str, list[str]] = {}
    for label, entry in averages.items():
        if entry.score is None:
            missing.setdefault(entry.status, []).append(label)
    named = {status: ", ".join(of) if len(of) <= 4 else f"{len(of)} rows" for status, of in missing.items()}
    said = "".join(f"; {status}: {labels}" for status, labels in named.items())
    warning = ". What is said below holds for the others alone" if missing else ""
    complete = sum(entry.score is not None for entry in averages.values())
    return f"**What stands.** {complete} of {len(averages)} rows are complete{said}{warning}."


def merges(plan: Plan) -> list[str]:
    """The labels of the rows that merge, those beyond the paper left out."""
    return [row.label for row in plan.rows.values() if row.merges and not row.beyond]


def leaders(plan: Plan, lines: Sequence[Entry], averages: Mapping[str, Entry]) -> str:
    """The three best merges by their average, beside base, best expert, the columns' own experts and the mixture."""
    scored = {label: averages[label] for label in merges(plan) if averages[label].score is not None}
    if not scored:
        return "**Who leads.** No merge has been scored on every column yet."
    best = sorted(scored, key=lambda label: -(scored[label].score or 0.0))[:3]
    named = _and(_average(scored[label]) for label in best)
    said = f"**Who leads.** Of {len(scored)} merges, {named} have the highest averages"
    models = {str(row.model): averages[row.label] for row in plan.rows.values() if row.method == "checkpoint"}
    beside = []
    if _score(models.get("base")) is not None:
        beside.append(f"the base has {_score(models['base']):.1f}")
    experts = [models[name] for name in plan.profile.models.experts if _score(models.get(name)) is not None]
    if experts:
        best_expert = max(experts, key=lambda entry: entry.score or 0.0)
        beside.append(f"the best single expert ({best_expert.method}) {best_expert.score:.1f}")
    own = _own_experts(plan, lines)
    if own is not None:
        beside.append(f"each column's own expert on its column {own:.1f}")
    if _score(models.get("mixture")) is not None:
        beside.append(f"training on all data together {_score(models['mixture']):.1f}")
    return said + (f". For comparison, {_and(beside)}." if beside else ".")


def beyond(plan: Plan, averages: Mapping[str, Entry]) -> str:
    """The merges that the paper has not, beside the best of those that it has."""
    scored = [row.label for row in plan.rows.values() if row.beyond and _score(averages.get(row.label)) is not None]
    paper = [averages[label] for label in merges(plan) if averages[label].score is not None]
    if not scored or not paper:
        return ""
    best = max(paper, key=lambda entry: entry.score or 0.0)
    named = _and(_average(averages[label]) for label in scored)
    pairs = [pair for pair in plan.table.compare_beyond if all(row in plan.rows for row in pair)]
    compared = [each for each in comparisons.compare(plan, pairs) if each["benchmark"] == AVERAGE]
    said = [f"{comparisons.verdict(each)}: {_difference(each, comparisons.verdict(each), None)}" for each in compared]
    among = f" Paired over items, p by Holm's rule among these:{_list(said)}" if said else ""
    return f"**Beyond the paper.** {named}; the best of the paper's merges is {_average(best)}.{among}"


def _own_experts(plan: Plan, lines: Sequence[Entry]) -> float | None:
    """The mean over the columns of the score that the column's own expert has on it; None where one is missing."""
    labels = {row.model: row.label for row in plan.rows.values() if row.method == "checkpoint"}
    table = render.grid(lines)
    own = [_score(table.get(labels.get(plan.experts.get(name, ""), ""), {}).get(name)) for name in plan.benchmarks]
    scores = [score for score in own if score is not None]
    return float(np.mean(scores)) if scores and len(scores) == len(plan.benchmarks) else None


def shown(plan: Plan, compared: Sequence[dict], pairs: Pairs) -> list[str]:
    """The compared averages that are shown to differ, those that are not, and those that cannot be compared yet."""
    paper = {comparisons.named(plan, pair): comparisons.published_difference(plan, pair) for pair in pairs}
    found: dict[str, list[str]] = {}
    for each in compared:
        if each["benchmark"] == AVERAGE:
            verdict = comparisons.verdict(each)
            kind = verdict if "status" in each or verdict == "no difference shown" else "shown"
            found.setdefault(kind, []).append(_difference(each, verdict, paper[each["rows"]]))
    parts = []
    if "shown" in found:
        parts.append(f"**Shown to differ** (paired over items, p by Holm's rule below 0.05):{_list(found['shown'])}")
    if "no difference shown" in found:
        parts.append(f"**Not shown to differ**, which is not the same as equal:{_list(found['no difference shown'])}")
    rest = [
        f"{each} ({kind})" for kind, of in found.items() if kind not in ("shown", "no difference shown") for each in of
    ]
    return parts + ([f"**Not compared**:{_list(rest)}"] if rest else [])


def _difference(each: Mapping, verdict: str, paper: float | None) -> str:
    first, _, second = each["rows"].partition(" − ")
    if "status" in each:
        return f"{first} and {second}"
    interval = f"95 % interval {signed(each['low'])} to {signed(each['high'])}"
    theirs = "" if paper is None else f"; the paper: {signed(paper)}{_agreement(each['delta'], paper, verdict)}"
    if verdict == "no difference shown":
        return f"{first} and {second} ({signed(each['delta'])}, {interval}{theirs})"
    where = f"ahead of {second}" if verdict == "ahead" else f"behind {second}"
    return f"{first} is {where} by {abs(each['delta']):.1f} points ({interval}{theirs})"


def _agreement(ours: float, paper: float, verdict: str) -> str:
    """Whether the paper's averages have the same sign as a difference that is shown."""
    if verdict == "no difference shown":
        return ""
    return ", the same way round" if ours * paper > 0 else ", **the other way round**"


def gains(plan: Plan, compared: Sequence[dict], pairs: Pairs) -> str:
    """From whose columns the first pair's difference of averages comes, here and in the paper."""
    pair = next((pair for pair in pairs if any(_is(plan, each, pair) and "delta" in each for each in compared)), None)
    if pair is None:
        return ""
    ours = {each["benchmark"]: each["delta"] for each in compared if _is(plan, each, pair)}
    theirs = {name: comparisons.published_difference(plan, pair, name) for name in plan.benchmarks}
    said = f"**Where it comes from.** {comparisons.named(plan, pair)}, {signed(ours[AVERAGE])} points here: "
    said += _by_expert(plan, ours)
    if all(value is not None for value in theirs.values()):
        known = {name: value or 0.0 for name, value in theirs.items()}
        said += f". In the paper, {signed(float(np.mean(list(known.values()))))}: {_by_expert(plan, known)}"
    return said + "."


def _by_expert(plan: Plan, differences: Mapping[str, float]) -> str:
    """Each expert's columns' share in the difference of averages, in points."""
    parts = []
    for expert, names in itertools.groupby(plan.benchmarks, key=lambda name: plan.experts.get(name, "other columns")):
        parts.append(f"{expert} {signed(sum(differences[name] for name in names) / len(plan.benchmarks))}")
    return ", ".join(parts)


def order(plan: Plan, averages: Mapping[str, Entry]) -> str:
    """How far the merges' averages are in the paper's order: a rank correlation, and who is furthest from its place."""
    theirs = {label: row.get(AVERAGE) for label, row in published(plan.table).items()}
    labels = [label for label in merges(plan) if averages[label].score is not None and theirs.get(label) is not None]
    if len(labels) < 4:
        return ""
    ours = distributions.rankdata([-(averages[label].score or 0.0) for label in labels])
    paper = distributions.rankdata([-(theirs[label] or 0.0) for label in labels])
    rho = distributions.spearmanr(ours, paper).statistic
    moved = sorted(range(len(labels)), key=lambda i: -abs(ours[i] - paper[i]))[:3]
    said = _and(f"{labels[i]} ({paper[i]:g} there, {ours[i]:g} here)" for i in moved if ours[i] != paper[i])
    far = f" Furthest from their place in the paper: {said}." if said else ""
    return f"**The order of the {len(labels)} merges**, against the paper's: rank correlation {signed(rho, 2)}.{far}"


def carried(plan: Plan, averages: Mapping[str, Entry]) -> list[str]:
    """The same for each profile that this one names ``beside``: does the order of the merges carry over between models?

    The interval is of other items: both sides' averages are drawn ``DRAWS`` times within their standard errors, each
    row for itself.
    """
    found = []
    for name in plan.profile.beside:
        path = plan.home.parent / name / "tables" / f"{plan.name}.csv"
        theirs = _averages(path) if path.is_file() else {}
        labels = [label for label in merges(plan) if averages[label].score is not None and label in theirs]
        if len(labels) >= 4:
            here = np.array([[averages[label].score or 0.0, averages[label].stderr or 0.0] for label in labels])
            there = np.array([theirs[label] for label in labels])
            rho, low, high = _rank_correlation(here, there)
            said = f"rank correlation {signed(rho, 2)} (95 % interval {signed(low, 2)} to {signed(high, 2)})"
            found.append(f"**The order of the {len(labels)} merges**, against that of the profile `{name}`: {said}.")
        else:
            found.append(f"**The order of the merges** cannot be compared with the profile `{name}`: not run yet.")
    return found


def _averages(path: Path) -> dict[str, tuple[float, float]]:
    """Label → the average and its standard error, in a table's CSV; rows that have one."""
    with open(path, encoding="utf-8", newline="") as stream:
        lines = [line for line in csv.DictReader(stream) if line["benchmark"] == AVERAGE and line["score"]]
    return {line["method"]: (float(line["score"]), float(line["stderr"] or 0.0)) for line in lines}


def _rank_correlation(here: np.ndarray, there: np.ndarray) -> tuple[float, float, float]:
    """Spearman's ρ of two lists of (average, standard error) [rows, 2], and its 95 % interval."""
    rng = np.random.default_rng(0)
    drawn = [rng.normal(side[:, 0], side[:, 1], (DRAWS, len(side))) for side in (here, there)]
    ranks = [distributions.rankdata(side, axis=1) for side in drawn]
    centred = [side - side.mean(axis=1, keepdims=True) for side in ranks]
    spread = np.sqrt((centred[0] ** 2).sum(axis=1) * (centred[1] ** 2).sum(axis=1))
    found = (centred[0] * centred[1]).sum(axis=1) / spread
    rho = distributions.spearmanr(here[:, 0], there[:, 0]).statistic
    low, high = np.percentile(found, (2.5, 97.5))
    return float(rho), float(low), float(high)


def above_mixture(plan: Plan, averages: Mapping[str, Entry]) -> str:
    """How many merges reach training on all data together, here and in the paper."""
    label = next((row.label for row in plan.rows.values() if row.model == "mixture"), "")
    theirs = {name: row.get(AVERAGE) for name, row in published(plan.table).items()}
    here, there = _score(averages.get(label)), theirs.get(label)
    labels = [name for name in merges(plan) if averages[name].score is not None and theirs.get(name) is not None]
    if here is None or there is None or not labels:
        return ""
    ours = sum((averages[name].score or 0.0) >= here for name in labels)
    paper = sum((theirs[name] or 0.0) >= there for name in labels)
    return f"**{label}** is reached by {ours} of {len(labels)} merges here and by {paper} of them in the paper."


def _is(plan: Plan, each: Mapping, pair: Sequence[str]) -> bool:
    return each["rows"] == comparisons.named(plan, pair)


def _score(entry: Entry | None) -> float | None:
    return None if entry is None else entry.score


def _average(entry: Entry) -> str:
    return f"{entry.method} ({entry.score:.1f} ± {entry.stderr:.1f})"


def _list(parts: Sequence[str]) -> str:
    """A list within the list."""
    return "".join(f"\n    - {part}" for part in parts)


def _and(parts) -> str:
    *first, last = parts = list(parts) or [""]
    return f"{', '.join(first)} and {last}" if first else last
