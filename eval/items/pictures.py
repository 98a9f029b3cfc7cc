"""A drawn image item as a row of the table that VLMEvalKit's dataset class reads, by sub-task.

Sources: `vlmeval/dataset/image_vqa.py` (ImageVQADataset, VizWiz, MathVista, MathVision) and `refcoco.py` of
ms-vlmeval 0.0.20. `index`, `image` and `question` stand in every table; lists are written as Python literals.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from emkit.zoo.data import QA

Row = dict[str, object]


class View(NamedTuple):
    """An item's picture: its sides in pixels, and how many of them a unit of the drawing takes."""

    width: int
    height: int
    scale: float


def _short_answer(qa: QA, view: View) -> Row:
    return {"answer": qa.answer}


def _vizwiz(qa: QA, view: View) -> Row:
    return {"answers": repr(qa.fields["answers"])}


def _textvqa(qa: QA, view: View) -> Row:
    return {"answer": repr(qa.fields["answers"])}


def _chartqa(qa: QA, view: View) -> Row:
    return {"answer": qa.answer, "split": qa.fields["split"]}


def _mathvista(qa: QA, view: View) -> Row:
    """`answer` is the value; `answer_option` the letter that a multiple-choice reply must name."""
    names = ("question_type", "answer_type", "answer_option", "task")
    lists = {"choices": repr(qa.fields["choices"]), "skills": repr(qa.fields["skills"])}
    return {"answer": qa.fields["answer_value"], **{name: qa.fields[name] for name in names}, **lists}


def _mathvision(qa: QA, view: View) -> Row:
    """`answer` is the letter where there are choices, the value where there are none."""
    return {"answer": qa.answer, "choices": repr(qa.fields["choices"]), "category": qa.fields["category"]}


def _refcoco(qa: QA, view: View) -> Row:
    """The box in pixels of the image, beside the image's own size."""
    corners = {
        f"bbox_{corner}": value * view.scale
        for corner, value in zip(("x1", "y1", "x2", "y2"), qa.fields["bbox"], strict=True)
    }
    return {"answer": qa.answer, **corners, "width": view.width, "height": view.height}


ROWS: dict[str, Callable[[QA, View], Row]] = {
    "vizwiz": _vizwiz,
    "gqa": _short_answer,
    "mathvista": _mathvista,
    "mathvision": _mathvision,
    "chartqa": _chartqa,
    "textvqa": _textvqa,
    "ocrvqa": _short_answer,
    "refcoco": _refcoco,
    "refcoco+": _refcoco,
    "refcocog": _refcoco,
}
