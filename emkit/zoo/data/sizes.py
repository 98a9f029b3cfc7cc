"""Pictures of several sizes: a drawn square, or the square within a plain border of one side or two.

Qwen2-VL takes images of any size, so its miniature sees some. What is drawn stays 96 pixels a side and legible; the
border makes the picture one or two image tokens wider or higher (a token is 16 × 16 pixels), and moves every box.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from emkit.zoo.data.qa import QA, box_text
from emkit.zoo.data.regions import UNITS, Picture, Region
from emkit.zoo.data.sampling import Draw

MIXED = "mixed"  # the `size` that means: by the rule below
_SIZES = ((96, 96), (96, 96), (112, 96), (96, 112), (112, 112))  # width and height, each as likely as another
_WHICH_SIZE = 2  # keeps the choice of a size apart from the drawing of the picture
_BOX = re.compile(r"\[(\d+),(\d+),(\d+),(\d+)\]")


def frame(*entropy: int) -> tuple[tuple[int, int], tuple[int, int], int]:
    """The size of a picture in pixels, where in it the drawn square's upper left corner lies, and the border's grey."""
    draw = Draw(*entropy, _WHICH_SIZE)
    width, height = draw.pick(_SIZES)
    corner = draw.integer(0, width - UNITS), draw.integer(0, height - UNITS)
    return (width, height), corner, draw.integer(40, 215)


def bordered(picture: Picture, size: tuple[int, int], corner: tuple[int, int], grey: int) -> Picture:
    """A square of 96 pixels within its border; regions move with it (their units are pixels)."""
    image = Image.new("RGB", size, (grey,) * 3)
    image.paste(picture.image, corner)
    return Picture(image, tuple(Region(label, _shifted(box, corner)) for label, box in picture.regions))


def moved(qa: QA, size: tuple[int, int], corner: tuple[int, int]) -> QA:
    """A question about the square, asked about the bordered picture: its boxes in text and in `fields` follow."""
    fields = qa.fields
    if "bbox" in fields:
        fields = fields | {"bbox": list(_shifted(fields["bbox"], corner))}

    def box(found: re.Match) -> str:
        # exact, for a unit is more than the ten thousandths to which a box's text is rounded
        drawn = [round(int(number) * UNITS / 1000) for number in found.groups()]
        return box_text(_shifted(drawn, corner), size)

    return replace(qa, question=_BOX.sub(box, qa.question), answer=_BOX.sub(box, qa.answer), fields=fields)


def _shifted(box: Sequence, corner: tuple[int, int]) -> tuple:
    return box[0] + corner[0], box[1] + corner[1], box[2] + corner[0], box[3] + corner[1]
