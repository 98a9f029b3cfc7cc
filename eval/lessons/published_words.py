"""Sentences about the published tables, as Markdown: every number in them is computed from the frames given."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from eval.lessons import granularity, precision, published
from eval.lessons.published import AVERAGE, BACKBONES, EM, EMPP, MAIN, NUMBERS


def averages(found: pd.DataFrame) -> str:
    """How the printed averages come from their cells."""
    rules = found["rule"].value_counts()
    backbone = {number: BACKBONES[name] for name, of in NUMBERS.items() for number in of.values()}
    by = found.assign(backbone=found["table"].map(backbone)).groupby("backbone", sort=False)["rule"]
    decided = [f"{name}: {sum(of == 'truncated')} truncated, {sum(of == 'rounded')} rounded" for name, of in by]
    lines = [
        f"Of {len(found)} averages, {len(found) - rules.get('does not add up', 0)} lie within a hundredth of the mean "
        f"of their cells. Where truncating and rounding give different digits: {'; '.join(decided)}."
    ]
    for _, row in found[found["rule"] == "does not add up"].iterrows():
        lines.append(
            f"**{row['row']}** in Table {row['table']} does not add up: its cells average {row['mean']:.2f}, the row "
            f"says {row['printed']:.2f}."
        )
    fewer = found[found["columns"] < found.groupby("table")["columns"].transform("max")]
    for _, row in fewer.iterrows():
        lines.append(
            f"**{row['row']}** in Table {row['table']} is averaged over {row['columns']} columns, the ones without a "
            "dash; it cannot be compared with an average over all."
        )
    return _bullets(lines)


def rivals(tables: published.Tables) -> str:
    """The best earlier method of each main table, by printed and by recomputed averages."""
    lines = []
    for backbone, number in NUMBERS.items():
        frame, own = tables[number[MAIN]], published.corrected(tables[number[MAIN]])
        by_print, by_cells = precision.best_earlier(frame), precision.best_earlier(own)
        gain = own.loc[EMPP, AVERAGE] - own.loc[by_cells, AVERAGE]
        said = f"{BACKBONES[backbone]}: {by_cells}, {own.loc[by_cells, AVERAGE]:.2f}; {EMPP} is {gain:+.2f} from it"
        if by_print != by_cells:
            was = frame.loc[EMPP, AVERAGE] - frame.loc[by_print, AVERAGE]
            said += f" (by the printed averages it would be {by_print}, {was:+.2f})"
        lines.append(said)
    return _bullets(lines)


def same(found: pd.DataFrame) -> str:
    """Which configurations are printed with different numbers."""
    odd = found[found["columns that differ"].map(bool)]
    first = found.groupby(["backbone", "configuration"])[AVERAGE].transform("first")
    return _bullets(
        f"{BACKBONES[row['backbone']]}, {row['configuration']}: {first[i]:.2f}, but {row[AVERAGE]:.2f} in Table "
        f"{row['table']} ({row['columns that differ']:.0f} columns differ, most in {row['most in']} points)"
        for i, row in odd.iterrows()
    )


def repeats(found: pd.DataFrame, count: int = 5) -> str:
    """What the granularity says about averages over repeats."""
    values, fit = int(found["different values"].sum()), int(found["fit one run"].sum())
    expected = found[f"expected of means of {count}"].sum()
    return (
        f"Of {values} different values of the paper's own methods, **{fit}** fit the steps of a single run; if each "
        f"were a mean of {count} runs whose totals fall anywhere, about {expected:.0f} would. So these cells are "
        f"single runs, or means of {count} runs with the same number of right answers each, whose spread over seeds is "
        "zero or not shown. Either way the tables tell nothing about the spread over seeds."
    )


def one_item(found: pd.DataFrame) -> str:
    """What Expert Merging++'s gains over Expert Merging come from."""
    return _bullets(
        f"{BACKBONES[row['backbone']]}: {row['gain of the average']:+.2f} on average, of which {row['its part']:+.2f} "
        f"is {row['most from']}, {'about ' if row['most from'] == 'MathVista' else ''}{row['in items']} items; without "
        f"that column's change the average would move by {row['gain without it']:+.2f}"
        for _, row in found.iterrows()
    )


def gains(found: pd.DataFrame) -> str:
    """How many of the headline gains a test of each kind can show."""
    number = found["verdict"].value_counts()
    sure = found[found["verdict"] == "ahead even unpaired"]
    never = found[found["verdict"] == "cannot be shown"]
    return _bullets(
        [
            f"{len(sure)} of {len(found)} differences survive an unpaired test after Holm's correction: "
            f"{_names(sure)}.",
            f"{len(never)} cannot be shown by any test on these items, not even if every item that changed had changed "
            f"in the right direction: {_names(never)}.",
            f"The other {number.get('depends on the items', 0)} depend on something that is not printed: on how many "
            "items the two models disagree.",
        ]
    )


def _names(found: pd.DataFrame) -> str:
    return "; ".join(f"{BACKBONES[b]}, {c}" for b, c in zip(found["backbone"], found["comparison"])) or "none"


def conclusions(tables: published.Tables, metrics: pd.DataFrame) -> str:
    """The notebook's findings in five lines."""
    sums, same_as = published.averages(tables), published.disagreements(tables)
    tested = granularity.tested(published.cells(tables), metrics)
    impossible, runs = granularity.impossible(tested), granularity.repeated(tested)
    found, best = precision.gains(tables, metrics), published.best_of_sweep(tables)
    error = [precision.average_stderr(tables[n[MAIN]].loc[EM], metrics) for n in NUMBERS.values()]
    verdicts = found["verdict"].value_counts()
    ours = found[found["comparison"] == f"{EMPP} − {EM}"]
    steps = ", ".join(f"{gain:+.2f}" for gain in ours["gain"])
    return _bullets(
        [
            f"{sum(sums['rule'] != 'does not add up')} of {len(sums)} averages follow from their cells; "
            f"{sum(sums['rule'] == 'does not add up')} does not, and with it the strongest earlier method of its table "
            "is another.",
            f"{same_as.groupby(['backbone', 'configuration']).ngroups} of {len(published.same_configuration(tables))} "
            "configurations that stand in several tables have more than one set of numbers.",
            f"{len(impossible)} of {len(granularity.confirmed(tested))} testable cells are no share of their "
            f"benchmark's items, and {int(runs['fit one run'].sum())} of {int(runs['different values'].sum())} values "
            "of the paper's own methods look like single runs.",
            f"One standard error of an average is {min(error):.1f} to {max(error):.1f} points. "
            f"{verdicts.get('ahead even unpaired', 0)} of {len(found)} headline differences are beyond doubt by the "
            f"printed numbers alone, {verdicts.get('cannot be shown', 0)} are out of reach of any test, and the rest "
            f"need the items. {EMPP} over {EM}: {steps}; out of reach for "
            f"{sum(ours['verdict'] == 'cannot be shown')} of {len(ours)} backbones.",
            f"In {int(best['best is the default'].sum())} of {len(best)} sweeps the default is the best row, so the "
            "defaults' scores were most likely chosen by, and are somewhat favoured by, the same test items.",
        ]
    )


def _bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
