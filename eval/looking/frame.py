"""Items of one benchmark with what rows of a table answered, as a pandas frame."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd

from emkit.errors import UserError
from emkit.schema import nearest
from eval import scores
from eval.looking import reading, sources
from eval.places import EVALUATION, Job
from eval.plan import Plan

PREDICTION, SCORE, FORM, BOX = "prediction", "score", "well-formed", "box"


def items(plan: Plan, benchmark: str, rows: Iterable[str] | None = None, seed: int | None = None) -> pd.DataFrame:
    """One line an item of ``benchmark``: ``index``, ``question``, ``picture``, ``gold``, ``groups``, and for each of
    ``rows`` (ids; none: all that run) its ``"<row> prediction"``, ``"<row> score"`` in [0, 1] and ``"<row>
    well-formed"``. For grounding also ``box`` and ``"<row> box"``: x1, y1, x2, y2 in pixels, None where the harness
    finds no box. ``seed`` chooses the run of a random row (the first otherwise).

    Rows without these scores are left out, which is said in one line. An item that a row has no score of (a judge's
    unreadable reply) has no prediction there. ``UserError`` for an unknown benchmark or row, and where items are not
    here and cannot be drawn.
    """
    if benchmark not in plan.benchmarks:
        raise UserError(f"{plan.path} has no column '{benchmark}': {nearest(benchmark, plan.benchmarks)}")
    wanted = [row for row in plan.rows if plan.runs(row)] if rows is None else [plan.entry(row).id for row in rows]
    found, column = sources.read(plan, benchmark), plan.protocol.columns[benchmark]
    data: dict[str, list[Any]] = {
        "index": [item.index for item in found],
        "question": [item.question for item in found],
        "picture": [item.picture for item in found],
        "gold": [item.gold for item in found],
        "groups": [item.groups for item in found],
    }
    grounding = all("bbox_x1" in item.fields for item in found)
    if grounding:
        data[BOX] = [reading.gold_box(item.fields) for item in found]
    form, missing = reading.form(column), {}
    for row in wanted:
        answers = _answers(plan, row, benchmark, seed)
        if isinstance(answers, str):
            missing[row] = answers
            continue
        given = [answers.get(item.index) for item in found]
        texts = [None if answer is None else answer["prediction"] for answer in given]
        pairs = list(zip(texts, found))
        data[f"{row} {PREDICTION}"] = texts
        data[f"{row} {SCORE}"] = [None if answer is None else answer["score"] for answer in given]
        data[f"{row} {FORM}"] = [None if text is None else form.holds(text, item.fields) for text, item in pairs]
        if grounding:
            data[f"{row} {BOX}"] = [_box(text, item) for text, item in pairs]
    _say(plan, benchmark, missing, len(wanted))
    frame = pd.DataFrame({name: pd.Series(values, dtype=_dtype(name)) for name, values in data.items()})
    frame.attrs = {"benchmark": benchmark, "form": form.words, "labels": {row: plan.entry(row).label for row in wanted}}
    return frame


def asked(frame: pd.DataFrame) -> list[str]:
    """The rows whose answers a frame holds."""
    return [str(name).removesuffix(f" {SCORE}") for name in frame if str(name).endswith(f" {SCORE}")]


def labels(frame: pd.DataFrame) -> dict[str, str]:
    """Row → what the table calls it, of the rows whose answers a frame holds."""
    return {row: frame.attrs.get("labels", {}).get(row, row) for row in asked(frame)}


def _dtype(name: str) -> str:
    return "float64" if name.endswith(f" {SCORE}") else "object"


def _box(text: str | None, item: sources.Item) -> reading.Box | None:
    return None if text is None else reading.box(text, item.fields["width"], item.fields["height"])


def _answers(plan: Plan, row: str, benchmark: str, seed: int | None) -> dict[str, dict] | str:
    """A row's items by index, or why there are none."""
    if not plan.runs(row):
        return "not run yet"
    seeds = plan.seeds(row)
    path = plan.cell(Job(row, seed if seed in seeds else seeds[0]), benchmark)
    if not path.is_file():
        return "not run yet"
    cell = scores.read_cell(path)
    if cell.status != "ok":
        return cell.status
    if cell.data_sha256 != plan.items_identity(EVALUATION, benchmark):
        return "scored on other items than these"
    return {item["index"]: item for item in scores.read_items(path)}


def _say(plan: Plan, benchmark: str, missing: dict[str, str], wanted: int) -> None:
    """One line on the rows that are left out."""
    if not missing:
        return
    if len(missing) == wanted and set(missing.values()) == {"not run yet"}:
        print(f"{benchmark}: no row of {plan.table.title} has been run; `{plan.command}` runs them")
        return
    why = "; ".join(
        f"{reason}: {', '.join(row for row, said in missing.items() if said == reason)}"
        for reason in dict.fromkeys(missing.values())
    )
    print(f"{benchmark}: rows left out ({why}); `{plan.command}` runs them")
