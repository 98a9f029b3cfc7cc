"""What the geometry figures of MathVista and MATH-Vision have in common: paper, ink and labels."""

from __future__ import annotations

import math

from emkit.zoo.data.canvas import RGB, Canvas
from emkit.zoo.data.sampling import Draw
from emkit.zoo.data.scenes import light
from emkit.zoo.data.words import COLORS

INK: RGB = (20, 20, 25)
LABEL_FONT = "DejaVuSans-Bold"
LABEL = 10.5  # units high


def style(draw: Draw) -> dict:
    """Colours of the paper and of the figure's filling, and a small shift of the whole figure."""
    paper = [235 + draw.integer(0, 18) for _ in range(3)] if draw.chance(0.7) else light(draw)
    color = draw.pick([c for c in COLORS if c != "black"])
    tint = [(v + 2 * 245) // 3 for v in COLORS[color]]
    return {
        "paper": paper,
        "tint": tint,
        "strong": list(COLORS[color]),
        "shift": [draw.integer(-4, 4), draw.integer(-4, 4)],
    }


def label(canvas: Canvas, at: tuple[float, float], text: object, height: float = LABEL) -> None:
    canvas.text(at, str(text), LABEL_FONT, height, INK)


def direction(degrees: float) -> tuple[float, float]:
    """Unit vector at this angle, counter-clockwise from three o'clock, in image coordinates (y down)."""
    return math.cos(math.radians(degrees)), -math.sin(math.radians(degrees))


def along(start: tuple[float, float], degrees: float, length: float) -> tuple[float, float]:
    u, v = direction(degrees)
    return start[0] + u * length, start[1] + v * length
