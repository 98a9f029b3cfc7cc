"""Sentences of the notebook on Expert Merging that say numbers, computed from what the cell before has measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from IPython.display import Markdown

from emkit.results import History
from eval import table
from eval.lessons import fits, probe
from eval.lessons.alignment import Seen
from eval.lessons.fits import Fitted, Setup

PAPER = Path(__file__).parent.parent / "paper"
MEASURES = {"hidden": "Eq. 1", "logit": "Eq. 2", "loss": "−ln p of the gold answers", "accuracy": "accuracy"}


def sizes(setup: Setup) -> Markdown:
    """How many numbers are learned, beside how many are merged."""
    vectors = setup.zoo.experts.vectors
    k, tensors = len(vectors.experts), len(vectors.names)
    numbers = sum(vectors.numel(name) for name in vectors.names)
    named = ", ".join(vectors.experts)
    return Markdown(
        f"Here **K = {k}** experts ({named}) and **L = {tensors}** merged tensors of {numbers:,} numbers together: "
        f"**K · L = {k * tensors} coefficients** are learned, one for every {numbers // tensors:,} parameters and "
        "expert, and nothing else in the model changes."
    )


def answered(setup: Setup, n: int = 2) -> Markdown:
    """The first questions of each task's samples, with what its expert answered: all that a fit has, as a table."""
    lines = ["| task | question | its expert's answer |", "|---|---|---|"]
    for task, samples in setup.calibration.tasks.items():
        rows = [row for rows in samples.rows for row in rows]
        lines += [f"| {task} | {_code(row['question'])} | {_code(row['response'])} |" for row in rows[:n]]
    return Markdown("\n".join(lines))


def _code(text: str) -> str:
    """``text`` in a cell of a Markdown table, as it is."""
    shown = (line.replace("`", "'").replace("|", "\\|") for line in text.split("\n"))
    return "<br>".join(f"`{line}`" for line in shown if line.strip())


def checked(found: pd.DataFrame) -> Markdown:
    """What the comparison with the fit's log comes to; raises ``ValueError`` where the two are not the same number."""
    largest = float(found["relative difference"].max())
    if not largest < 1e-4:
        raise ValueError(f"the fit logged something else than Eq. 1 and 2: they differ by {largest:.1e}")
    return Markdown(
        f"All {len(found)} numbers agree: the largest relative difference is {largest:.0e}, the rounding of fp32. "
        "What you have just computed is what the fit minimises."
    )


def heaviest(part: Seen, answer: int, position: int, each: object) -> Markdown:
    """Which share of an answer's KL one token has."""
    here = np.flatnonzero(part.answer == answer)
    values = np.asarray(each)[here]
    share = float(np.asarray(each)[position] / values.sum())
    return Markdown(
        f"The expert's answer has {len(here)} tokens; the one with the largest KL, `{part.tokens[position].strip()}`, "
        f"has {share:.0%} of the sum."
    )


def gained(frame: pd.DataFrame, first: str, then: str) -> Markdown:
    """From one merge to another, by task: what became of each measure."""
    parts = []
    for measure, said in MEASURES.items():
        pivot = frame.pivot(index="task", columns="merge", values=measure)
        each = ", ".join(f"{task} {row[first]:.3g} → {row[then]:.3g}" for task, row in pivot.iterrows())
        parts.append(f"- {said}: {each}; mean {pivot[first].mean():.3g} → {pivot[then].mean():.3g}.")
    return Markdown(f"From *{first}* to *{then}*, on what no fit has seen:\n\n" + "\n".join(parts))


def ablated(frame: pd.DataFrame) -> Markdown:
    """Which variant is best by each measure's mean over tasks, and by how much the worst is behind."""
    means = frame.groupby("merge", sort=False)[list(MEASURES)].mean()
    lines = []
    for measure, said in MEASURES.items():
        ordered = means[measure].sort_values(ascending=measure != "accuracy")
        each = ", ".join(f"*{name}* {value:.3g}" for name, value in ordered.items())
        lines.append(f"- by {said}, best first: {each}")
    return Markdown("Means over the tasks:\n\n" + "\n".join(lines))


def published(number: int, zoo: probe.Zoo) -> pd.DataFrame:
    """The averages of the paper's Table 4 (ablations) as published, in percent; of the zoo's backbone first."""
    found = pd.DataFrame(table.scores(PAPER / f"table{number}.csv")).T
    ours = [name for name in found if zoo.backbone.split("_")[0] in name.lower()]
    return found[[*ours, *(name for name in found if name not in ours)]]


def traded(frame: pd.DataFrame, task: str, other: str) -> Markdown:
    """What the first and the last value of a sweep over β do to two tasks' Eq. 2."""
    pivot = frame.pivot(index="value", columns="task", values="logit")
    low, high = pivot.index.min(), pivot.index.max()
    sides = [f"Eq. 2 of {name} goes from {pivot[name][low]:.3g} to {pivot[name][high]:.3g}" for name in (task, other)]
    return Markdown(f"From β = {low:g} to {high:g} for {task}, {sides[0]}, and {sides[1]}, on unseen samples.")


def swept(frames: Mapping[str, pd.DataFrame], what: str, start: pd.DataFrame) -> Markdown:
    """Of each sweep the value with the lowest Eq. 2 on unseen samples, with the ends beside it."""
    lines = [f"At the start Eq. 2 is {start['logit'].mean():.3g} on unseen samples, as a mean over tasks."]
    for name, frame in frames.items():
        mean = frame.groupby("value")["logit"].mean()
        ends = ", ".join(f"{what} = {value:g} gives {mean[value]:.3g}" for value in (mean.index[0], mean.index[-1]))
        lines.append(f"With {name}, it is lowest at {what} = {mean.idxmin():g} ({mean.min():.3g}); {ends}.")
    return Markdown(" ".join(lines))


def moved(fitted: Fitted) -> Markdown:
    """How far the coefficients are from where they began."""
    flat = fitted.coefficients.flat()
    return Markdown(
        f"The coefficients moved by {fitted.moved:.2f} on average, and lie between {flat.min():.2f} and "
        f"{flat.max():.2f} now. A coefficient below 0 *subtracts* what an expert has learned in that tensor; one above "
        "1 overshoots it."
    )


def recorded(zoo: probe.Zoo) -> History | Markdown:
    """The fit of the table's own row, which draws itself; where it has not been run, the command that runs it."""
    found = fits.recorded(zoo)
    if found is not None:
        return found
    plan = zoo.plan
    return Markdown(f"*{plan.table.title} has not been run with Expert Merging yet: `{plan.command}` does that.*")
