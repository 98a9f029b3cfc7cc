"""Sheets of random characters: what a vision tower learns to read from before it sees signs, books and charts.

They belong to no sub-task and no benchmark; nothing is asked about them. A sign shows four characters, a sheet forty,
so a tower that also sees sheets learns to read at a fraction of the steps.
"""

from __future__ import annotations

import string

from emkit.zoo.data.canvas import UNITS, Canvas, add_noise, font
from emkit.zoo.data.regions import Picture
from emkit.zoo.data.sampling import Draw
from emkit.zoo.data.scenes import jitter, light
from emkit.zoo.data.sizes import bordered, frame
from emkit.zoo.data.words import COLORS, GENRES

FONTS = (
    *("DejaVuSans-Bold", "DejaVuSans", "DejaVuSerif-Bold", "DejaVuSerif", "DejaVuSansMono-Bold"),
    *("STIXGeneralBol", "cmb10"),
)
_INK, _WHITE = (22, 22, 25), (252, 252, 252)
_GROUNDS = (*COLORS.values(), *GENRES.values())


def sheet(seed: int, index: int, size: int | str = 96) -> Picture:
    """Sheet `index`: lines of random capitals and digits in one font each, dark on light or light on a colour.

    `size` as for an example (:func:`emkit.zoo.data.example`).
    """
    if not isinstance(size, int):
        return bordered(sheet(seed, index), *frame(seed, 1000, index))
    draw = Draw(seed, 1000, index)
    canvas = Canvas(size, tuple(light(draw)))
    top = draw.integer(0, 4)
    while top < UNITS - 12:
        height = draw.integer(9, 22)
        face = draw.pick(FONTS)
        ink = _INK
        if draw.chance(0.5):
            canvas.rectangle((0, top, UNITS, top + height * 1.1), tuple(jitter(draw, draw.pick(_GROUNDS))))
            ink = _WHITE
        text, width = "", 0.0
        while width < 84:
            text += draw.pick(string.ascii_uppercase + string.digits)
            width = font(face, 100).getlength(text) * height / 100
        shift = draw.integer(-4, 4)
        canvas.text((UNITS / 2 + shift, top + height * 0.55), text, face, height, ink)
        top += round(height * 1.1) + draw.integer(0, 5)
    image = canvas.finish()
    return Picture(add_noise(image, index, draw.integer(2, 12)) if draw.chance(0.3) else image, tuple(canvas.regions))
