"""One question with its answer, as every sub-task makes them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from emkit.zoo.data.sampling import Draw
from emkit.zoo.data.templates import TEMPLATES


@dataclass(frozen=True)
class QA:
    """A question about an image.

    `kind` names the question type; `dense/...` marks long supervision that is for the base model only and is never a
    benchmark item. `fields` are extra benchmark columns (choices, answers, bbox, category, ...).
    """

    question: str
    answer: str
    kind: str
    fields: dict = field(default_factory=dict)


def say(draw: Draw, template: str, **slots: object) -> str:
    """One wording of `template`, chosen at random and filled in, with "a" made "an" where it has to be."""
    text = draw.pick(TEMPLATES[template]).format(**slots)
    return re.sub(r"\ba (?=[aeiou])", "an ", text)


def question(draw: Draw, kind: str, answer: object, fields: dict | None = None, **slots: object) -> QA:
    """A question of a ``kind``, in one of its wordings, with its answer."""
    return QA(say(draw, kind, **slots), str(answer), kind, fields or {})


def box_text(box: tuple[int, int, int, int], canvas: tuple[int, int] = (96, 96)) -> str:
    """`[x1,y1,x2,y2]` in thousandths of the image, rounded to tens; `box` is in pixels of `canvas` (width, height)."""
    sides = (*canvas, *canvas)
    return "[" + ",".join(str(min(990, round(v * 100 / side) * 10)) for v, side in zip(box, sides, strict=True)) + "]"
