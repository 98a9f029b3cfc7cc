"""Whether an answer has the form that its benchmark's harness can read, and the box that it reads in one.

A harness scores 0 for a wrong answer and for one that it cannot read alike; the share of the second is what tells a
model that does not know from one that lost the format. Boxes and options are read as VLMEvalKit reads them
(``refcoco.py``, ``matching_util.py`` of ms-vlmeval 0.0.20, beside which tests hold these), numbers and programs as
:mod:`eval.lm.scoring` does.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd

from eval.columns import Column, LMEval, VLMEvalKit
from eval.lm import programs, scoring

Box = tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels
_NUMBER = r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?"
_BOX = re.compile(r"\[\s*" + r"(?:\s*,\s*|\s+)".join([f"({_NUMBER})"] * 4) + r"\s*\]")
_FINAL = re.compile(r"#### (\-?[0-9\.\,]+)")  # the filter `strict-match` of lm-evaluation-harness's gsm8k.yaml
_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)


class Form(NamedTuple):
    """What an answer must look like, in words, and whether one does, given what its table says of the item."""

    words: str
    holds: Callable[[str, Mapping[str, Any]], bool]


def form(column: Column) -> Form:
    """The form of a column's answers."""
    if isinstance(column, VLMEvalKit):
        if column.dataset_class == "refcoco.RefCOCODataset":
            return Form("four numbers, read as a box", _holds_box)
        if column.dataset_class in ("image_vqa.MathVista", "image_vqa.MathVision", "image_mcq.ImageMCQDataset"):
            return Form("an option, or a number where a number is asked for", _mathematical)
    said = json.dumps(column.task) if isinstance(column, LMEval) else ""
    for name, found in _TASKS.items():
        if f"scoring.{name}" in said:
            return found
    return Form("any text", lambda text, row: bool(text.strip()))


def well_formed(frame: pd.DataFrame) -> pd.Series:
    """Row → the share of its answers that have the form the harness reads, in percent."""
    marks = [name for name in frame if str(name).endswith(" well-formed")]
    shares = {name.removesuffix(" well-formed"): 100 * frame[name].dropna().astype(float).mean() for name in marks}
    return pd.Series(shares, name="well-formed (%)", dtype=float)


# --------------------------------------------------------------------------------------------------- boxes
def box(text: str, width: float | str, height: float | str) -> Box | None:
    """The box in an answer, in pixels of a ``width`` × ``height`` picture; None where there are not four numbers.

    The first four numbers in brackets, else the first four of all. Numbers up to 1.5 are shares of the sides, up to
    1000 thousandths, else pixels; corners are moved into the picture and put in order.
    """
    width, height = float(width), float(height)
    found = _BOX.search(text)
    numbers = [float(part) for part in (found.groups() if found else re.findall(_NUMBER, text)[:4])]
    if len(numbers) < 4 or width <= 0 or height <= 0:
        return None
    largest = max(map(abs, numbers))
    unit = 1.0 if largest <= 1.5 else 1000.0 if largest <= 1000 else None
    sides = (width, height, width, height)
    if unit is not None:
        numbers = [number / unit * side for number, side in zip(numbers, sides)]
    x1, y1, x2, y2 = (min(max(number, 0.0), side) for number, side in zip(numbers, sides))
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def _holds_box(text: str, row: Mapping[str, Any]) -> bool:
    return box(text, row["width"], row["height"]) is not None


def gold_box(row: Mapping[str, Any]) -> Box:
    """The box that an item's table gives, in pixels."""
    x1, y1, x2, y2 = (float(row[f"bbox_{corner}"]) for corner in ("x1", "y1", "x2", "y2"))
    return x1, y1, x2, y2


def overlap(first: Sequence[float], second: Sequence[float]) -> float:
    """Intersection over union of two boxes; 0 where they do not touch."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(found[2] - found[0]) * (found[3] - found[1]) for found in (first, second)]
    return width * height / (sum(areas) - width * height)


# ------------------------------------------------------------------------------------- options, numbers, programs
def option(text: str, choices: Sequence[Any]) -> str | None:
    """The option that VLMEvalKit infers from an answer (its letter; Z for a refusal); None where it infers none."""
    letters = {chr(ord("A") + at): str(choice).lower() for at, choice in enumerate(choices)}
    if "Failed to obtain answer via API" in text:
        return _by_text(text, letters)
    if any(refusal in text for refusal in _REFUSALS):
        return "Z"
    words = re.sub(r"[.()\[\],:;!*#{}]", " ", text).split()
    named = [letter for letter in letters if letter in words]
    if len(named) == 1 and words.index(named[0]) > len(words) - 5:
        return named[0]
    if not named and "Z" in words:
        return "Z"
    return _by_text(text, letters)


def _by_text(text: str, letters: Mapping[str, str]) -> str | None:
    """The one option whose text stands in a short answer."""
    if len(text) > 2 * sum(map(len, letters.values())):
        return None
    named = [letter for letter, choice in letters.items() if choice in text.lower()]
    return named[0] if len(named) == 1 else None


def _mathematical(text: str, row: Mapping[str, Any]) -> bool:
    choices = ast.literal_eval(str(row.get("choices") or "[]"))
    if choices:
        return option(text, choices) is not None
    return not _is_number(str(row.get("answer", ""))) or _is_number(text)


def _is_number(text: str) -> bool:
    try:
        float(text.strip().replace("−", "-").replace("–", "-"))
    except ValueError:
        return False
    return True


def _completes(text: str, row: Mapping[str, Any]) -> bool:
    return programs.completed(row["prompt"], text, row.get("entry_point")) is not None


def _defines(text: str, row: Mapping[str, Any]) -> bool:
    return programs.whole(text, programs.called(row.get("test_list", []))) is not None


_TASKS = {
    "final_number": Form("a number behind ####", lambda text, row: _FINAL.search(text) is not None),
    "boxed_answer": Form("an answer in \\boxed{…}", lambda text, row: scoring.box_of(text) is not None),
    "completed_programs": Form("a body of the function, or all of it, that is Python", _completes),
    "written_programs": Form("Python that defines what the tests call", _defines),
}
