"""Everyday things as simple coloured drawings, each inside the box (x - r, y - r, x + r, y + r)."""

from __future__ import annotations

from collections.abc import Callable

from emkit.zoo.data.canvas import RGB, Canvas

_PAPER: RGB = (250, 248, 240)
_GLASS: RGB = (200, 225, 235)
_INK: RGB = (25, 25, 25)


class _Brush:
    """Draws in the thing's own coordinates: the box is [-1, 1] x [-1, 1]."""

    def __init__(self, canvas: Canvas, thing: dict) -> None:
        self.canvas, self.thing, self.rgb = canvas, thing, tuple(thing["rgb"])
        self.edge = tuple(v * 6 // 10 for v in self.rgb)

    def at(self, u: float, v: float) -> tuple[float, float]:
        return self.thing["x"] + u * self.thing["r"], self.thing["y"] + v * self.thing["r"]

    def box(self, u1: float, v1: float, u2: float, v2: float, fill: RGB | None = None) -> None:
        self.canvas.rectangle((*self.at(u1, v1), *self.at(u2, v2)), fill or self.rgb)

    def oval(self, u1: float, v1: float, u2: float, v2: float, fill: RGB | None = None) -> None:
        self.canvas.ellipse((*self.at(u1, v1), *self.at(u2, v2)), fill or self.rgb)

    def hoop(self, u1: float, v1: float, u2: float, v2: float, width: float) -> None:
        """The outline of an oval."""
        self.canvas.ellipse((*self.at(u1, v1), *self.at(u2, v2)), None, self.rgb, width * self.thing["r"])

    def shape(self, points: list[tuple[float, float]], fill: RGB | None = None) -> None:
        self.canvas.polygon([self.at(u, v) for u, v in points], fill or self.rgb)


def _cup(b: _Brush) -> None:
    b.hoop(0.2, -0.5, 1.0, 0.5, width=0.2)
    b.shape([(-0.9, -0.8), (0.6, -0.8), (0.45, 0.9), (-0.75, 0.9)])
    b.oval(-0.9, -1.0, 0.6, -0.6, b.edge)


def _bottle(b: _Brush) -> None:
    b.box(-0.17, -1.0, 0.17, -0.3, b.edge)
    b.shape([(-0.17, -0.55), (0.17, -0.55), (0.5, -0.1), (0.5, 1.0), (-0.5, 1.0), (-0.5, -0.1)])
    b.box(-0.5, 0.25, 0.5, 0.65, _PAPER)


def _key(b: _Brush) -> None:
    b.hoop(-1.0, -0.5, 0.0, 0.5, width=0.24)
    b.box(-0.1, -0.13, 1.0, 0.13)
    b.box(0.5, 0.1, 0.66, 0.5)
    b.box(0.82, 0.1, 0.98, 0.6)


def _shirt(b: _Brush) -> None:
    b.shape(
        [
            (-0.35, -0.9),
            (0.35, -0.9),
            (1.0, -0.4),
            (0.75, 0.1),
            (0.5, -0.1),
            (0.5, 0.95),
            (-0.5, 0.95),
            (-0.5, -0.1),
            (-0.75, 0.1),
            (-1.0, -0.4),
        ]
    )
    b.shape([(-0.25, -0.9), (0.25, -0.9), (0.0, -0.55)], b.edge)


def _phone(b: _Brush) -> None:
    b.box(-0.55, -1.0, 0.55, 1.0)
    b.box(-0.42, -0.78, 0.42, 0.62, _GLASS)
    b.oval(-0.12, 0.7, 0.12, 0.94, _PAPER)


def _book(b: _Brush) -> None:
    b.box(-0.8, -0.95, 0.8, 0.95)
    b.box(-0.8, -0.95, -0.6, 0.95, b.edge)
    b.box(-0.35, -0.6, 0.6, -0.2, _PAPER)


def _bowl(b: _Brush) -> None:
    b.canvas.draw.pieslice(
        [*b.canvas.points([b.at(-1.0, -1.2), b.at(1.0, 0.8)])[0], *b.canvas.points([b.at(1.0, 0.8)])[0]],
        0,
        180,
        fill=b.rgb,
    )
    b.oval(-1.0, -0.45, 1.0, 0.05, b.edge)
    b.box(-0.4, 0.72, 0.4, 0.9, b.edge)


def _lamp(b: _Brush) -> None:
    b.shape([(-0.45, -1.0), (0.45, -1.0), (0.85, -0.05), (-0.85, -0.05)])
    b.box(-0.08, -0.05, 0.08, 0.8, b.edge)
    b.box(-0.5, 0.78, 0.5, 0.98, b.edge)


def _card(b: _Brush) -> None:
    b.box(-1.0, -0.75, 1.0, 0.75)
    b.box(-0.88, -0.63, 0.88, 0.63, _PAPER)
    b.canvas.text(b.at(0, 0), str(b.thing["number"]), "DejaVuSans-Bold", b.thing["r"] * 1.05, _INK)


_DRAWERS: dict[str, Callable[[_Brush], None]] = {
    draw.__name__[1:]: draw for draw in (_cup, _bottle, _key, _shirt, _phone, _book, _bowl, _lamp, _card)
}


def draw_thing(canvas: Canvas, thing: dict) -> None:
    """`thing` is {"kind", "rgb", "x", "y", "r", "number" for a card}."""
    _DRAWERS[thing["kind"]](_Brush(canvas, thing))
