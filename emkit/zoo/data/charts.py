"""ChartQA: bar, horizontal bar, line and pie charts, drawn by matplotlib's own artists.

The artists are drawn straight onto one Agg renderer per image size, without pyplot's figure layout, which would cost
fifty times as much. Questions are split as in the original: "augmented" ones read a value, "human" ones compare.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle, Wedge
from matplotlib.text import Text
from matplotlib.transforms import Affine2D
from PIL import Image

from emkit.zoo.data.canvas import FONT_FOLDER, UNITS, characters, font
from emkit.zoo.data.qa import QA, question
from emkit.zoo.data.regions import Picture, Region
from emkit.zoo.data.sampling import Draw, Spec
from emkit.zoo.data.words import CHART_LABELS, COLORS

_KINDS = ("bar", "bar", "barh", "line", "pie")
_MARK = {"bar": "bar", "barh": "bar", "line": "point", "pie": "slice"}
_BOTTOM, _TOP, _LEFT, _RIGHT = 14.0, 92.0, 23.0, 95.0  # the axes, in units from the lower left corner
_LEFT_H, _RIGHT_H = 16.0, 93.0  # of horizontal bars, whose labels are narrow
_FACE = "DejaVuSans-Bold"
_LIGHT = ("yellow", "orange")
_RC = {
    "text.hinting": "force_autohint",
    "text.hinting_factor": 1,
    "text.usetex": False,
    "text.antialiased": True,
    "path.simplify": True,
    "path.snap": True,
}
_LABEL, _VALUE = 10.5, 9.0  # text heights in units


# ------------------------------------------------------------------------------------------------ specifications


def _values(draw: Draw, count: int) -> list[int]:
    """Different multiples of 5 from 5 to 100."""
    return [5 * v for v in draw.sample(range(1, 21), count)]


def _shares(draw: Draw, count: int) -> list[int]:
    """Different multiples of 5 that sum to 100, none under 10."""
    while True:
        shares = [5 * draw.integer(2, 12) for _ in range(count - 1)]
        shares.append(100 - sum(shares))
        if shares[-1] >= 10 and len(set(shares)) == count:
            return shares


def sample(draw: Draw) -> Spec:
    kind = draw.pick(_KINDS)
    count = draw.integer(3, 4)
    return {
        "kind": kind,
        "labels": draw.sample(CHART_LABELS, count),
        "values": _shares(draw, count) if kind == "pie" else _values(draw, count),
        "colors": draw.sample(tuple(COLORS), count),
        "printed": kind == "pie" or draw.chance(0.85),
        "grid": draw.chance(0.7),
        "paper": [draw.integer(240, 255) for _ in range(3)],
        "start": draw.integer(0, 35) * 10 if kind == "pie" else 0,
        "width": draw.integer(60, 80),
    }


# ----------------------------------------------------------------------------------------------------- rendering

Side = Literal["left", "center", "right"]


class _Chart:
    """One chart being drawn by matplotlib's Agg renderer; coordinates in units, origin at the lower left."""

    def __init__(self, size: int, paper: list[int]) -> None:
        self.size = size
        self.scale = size / UNITS
        self.renderer = _canvas(size).get_renderer()
        self.renderer.clear()
        self.regions: list[Region] = []
        self.add(Rectangle((0, 0), UNITS, UNITS, facecolor=_rgb(paper), linewidth=0))

    def add(self, artist: Artist) -> None:
        artist.set_figure(_canvas(self.size).figure)
        artist.set_transform(Affine2D().scale(self.scale))
        artist.draw(self.renderer)

    def line(self, xs: list[float], ys: list[float], color: Any, width: float, **style: Any) -> None:
        self.add(Line2D(xs, ys, color=color, linewidth=width * self.scale, **style))

    def text(self, x: float, y: float, text: object, height: float, color: str = "black", ha: Side = "center") -> None:
        width = font(_FACE, 100).getlength(str(text)) * height / 100
        left = x - width * {"left": 0, "center": 0.5, "right": 1}[ha]
        self.regions += characters(str(text), left, UNITS - y, height, _FACE)
        how = _font(height * self.scale)
        self.add(Text(x, y, str(text), color=color, fontproperties=how, ha=ha, va="center_baseline"))

    def mark(self, label: str, x: float, y: float, half_width: float, half_height: float) -> None:
        """Remember what stands around a point."""
        box = (x - half_width, UNITS - y - half_height, x + half_width, UNITS - y + half_height)
        self.regions.append(Region(label, box))

    def image(self) -> Image.Image:
        return Image.fromarray(np.asarray(self.renderer.buffer_rgba())[:, :, :3].copy())


@lru_cache(maxsize=4)
def _canvas(size: int) -> FigureCanvasAgg:
    """Of a figure of `size` x `size` pixels, at one pixel a point."""
    return FigureCanvasAgg(Figure(figsize=(size / 72, size / 72), dpi=72))


@lru_cache(maxsize=16)
def _font(pixels: float) -> FontProperties:
    return FontProperties(fname=str(FONT_FOLDER / f"{_FACE}.ttf"), size=pixels)


def _rgb(rgb: list[int] | tuple[int, int, int]) -> tuple[float, ...]:
    return tuple(v / 255 for v in rgb)


def _height(value: int, low: float, high: float) -> float:
    """Where on an axis from `low` to `high` units the value 0..100 stands; there is room for a printed value above."""
    return low + (high - low) * value / 112


def _draw_axis(chart: _Chart, spec: Spec, horizontal: bool) -> None:
    """The value axis with ticks at 0, 50 and 100, its grid, and the line the marks stand on."""
    for tick in (0, 50, 100):
        if horizontal:
            x = _height(tick, _LEFT_H, _RIGHT_H)
            chart.text(x, 6.5, tick, _VALUE)
            ends = ([x, x], [_BOTTOM, _TOP])
        else:
            y = _height(tick, _BOTTOM, _TOP)
            chart.text(_LEFT - 1.5, y, tick, _VALUE, ha="right")
            ends = ([_LEFT, _RIGHT], [y, y])
        if spec["grid"] or tick == 0:
            chart.line(*ends, color="black" if tick == 0 else "0.75", width=0.8)


def _draw_bar(chart: _Chart, spec: Spec) -> None:
    _draw_axis(chart, spec, horizontal=False)
    step = (_RIGHT - _LEFT) / len(spec["values"])
    for i, (label, value, color) in enumerate(zip(spec["labels"], spec["values"], spec["colors"], strict=True)):
        x, wide = _LEFT + step * (i + 0.5), step * spec["width"] / 100
        top = _height(value, _BOTTOM, _TOP)
        chart.add(Rectangle((x - wide / 2, _BOTTOM), wide, top - _BOTTOM, facecolor=_rgb(COLORS[color]), linewidth=0))
        chart.mark(f"{color} bar", x, (top + _BOTTOM) / 2, wide / 2, (top - _BOTTOM) / 2)
        chart.text(x, 6.5, label, _LABEL)
        if spec["printed"]:
            chart.text(x, top + 5.5, value, _VALUE)


def _draw_barh(chart: _Chart, spec: Spec) -> None:
    _draw_axis(chart, spec, horizontal=True)
    step = (_TOP - _BOTTOM) / len(spec["values"])
    for i, (label, value, color) in enumerate(zip(spec["labels"], spec["values"], spec["colors"], strict=True)):
        y, wide = _TOP - step * (i + 0.5), step * spec["width"] / 100
        end = _height(value, _LEFT_H, _RIGHT_H)
        chart.add(Rectangle((_LEFT_H, y - wide / 2), end - _LEFT_H, wide, facecolor=_rgb(COLORS[color]), linewidth=0))
        chart.mark(f"{color} bar", (_LEFT_H + end) / 2, y, (end - _LEFT_H) / 2, wide / 2)
        chart.text(_LEFT_H - 8, y, label, _LABEL)
        if spec["printed"]:
            inside = value > 80
            chart.text(
                end - 2 if inside else end + 2,
                y,
                value,
                _VALUE,
                "white" if inside and color not in _LIGHT else "black",
                ha="right" if inside else "left",
            )


def _draw_line(chart: _Chart, spec: Spec) -> None:
    _draw_axis(chart, spec, horizontal=False)
    step = (_RIGHT - _LEFT) / len(spec["values"])
    xs = [_LEFT + step * (i + 0.5) for i in range(len(spec["values"]))]
    ys = [_height(v, _BOTTOM, _TOP) for v in spec["values"]]
    chart.line(xs, ys, color="0.4", width=1.5)
    for x, y, label, value, color in zip(xs, ys, spec["labels"], spec["values"], spec["colors"], strict=True):
        chart.line(
            [x], [y], color=_rgb(COLORS[color]), width=0, marker="o", markersize=7 * chart.scale, markeredgewidth=0
        )
        chart.mark(f"{color} point", x, y, 5, 5)
        chart.text(x, 6.5, label, _LABEL)
        if spec["printed"]:
            chart.text(x, y + 7.5, value, _VALUE)


def _draw_pie(chart: _Chart, spec: Spec) -> None:
    angle, centre, radius = float(spec["start"]), (48.0, 48.0), 34.0
    for label, value, color in zip(spec["labels"], spec["values"], spec["colors"], strict=True):
        end = angle + 3.6 * value
        chart.add(
            Wedge(centre, radius, angle, end, facecolor=_rgb(COLORS[color]), edgecolor="white", linewidth=chart.scale)
        )
        u, v = math.cos(math.radians((angle + end) / 2)), math.sin(math.radians((angle + end) / 2))
        chart.mark(f"{color} slice", centre[0] + 22 * u, centre[1] + 22 * v, 8, 8)
        chart.text(centre[0] + 41 * u, centre[1] + 41 * v, label, _LABEL)
        chart.text(centre[0] + 22 * u, centre[1] + 22 * v, value, _VALUE, "black" if color in _LIGHT else "white")
        angle = end


_DRAWERS = {"bar": _draw_bar, "barh": _draw_barh, "line": _draw_line, "pie": _draw_pie}


def render(spec: Spec, size: int) -> Picture:
    with matplotlib.rc_context(_RC):
        chart = _Chart(size, spec["paper"])
        _DRAWERS[spec["kind"]](chart, spec)
        return Picture(chart.image(), tuple(chart.regions))


# ----------------------------------------------------------------------------------------------------- questions


def _qa(draw: Draw, split: str, kind: str, answer: object, **slots: object) -> QA:
    return question(draw, f"chartqa/{kind}", answer, {"split": split}, **slots)


def _read_value(draw: Draw, spec: Spec) -> QA:
    i = draw.integer(0, len(spec["values"]) - 1)
    if draw.chance(0.3):
        return _qa(draw, "augmented", "value-color", spec["values"][i], a=spec["colors"][i], mark=_MARK[spec["kind"]])
    return _qa(draw, "augmented", "value", spec["values"][i], a=spec["labels"][i])


def _extreme(draw: Draw, spec: Spec) -> QA:
    largest = draw.chance(0.5)
    value = (max if largest else min)(spec["values"])
    i = spec["values"].index(value)
    how = draw.pick(("label", "value", "color"))
    if how == "value":
        return _qa(draw, "human", "maximum" if largest else "minimum", value)
    if how == "color" and largest:
        return _qa(draw, "human", "largest-color", spec["colors"][i], mark=_MARK[spec["kind"]])
    return _qa(draw, "human", "largest" if largest else "smallest", spec["labels"][i])


def _compare(draw: Draw, spec: Spec) -> QA:
    i, j = draw.sample(range(len(spec["values"])), 2)
    a, b = spec["labels"][i], spec["labels"][j]
    if draw.chance(0.5):
        return _qa(draw, "human", "compare", "yes" if spec["values"][i] > spec["values"][j] else "no", a=a, b=b)
    if spec["values"][i] < spec["values"][j]:
        i, j, a, b = j, i, b, a
    return _qa(draw, "human", "difference", spec["values"][i] - spec["values"][j], a=a, b=b)


def _color_or_count(draw: Draw, spec: Spec) -> QA:
    i = draw.integer(0, len(spec["values"]) - 1)
    if draw.chance(0.7):
        return _qa(draw, "human", "color", spec["colors"][i], a=spec["labels"][i])
    return _qa(draw, "human", "count", len(spec["values"]), a=_MARK[spec["kind"]] + "s")


def ask(spec: Spec, draw: Draw) -> list[QA]:
    qas = [
        _read_value(draw, spec),
        _read_value(draw, spec),
        _extreme(draw, spec),
        _compare(draw, spec),
        _color_or_count(draw, spec),
    ]
    unique = {qa.question: qa for qa in qas}
    table = " , ".join(
        f"{label} {color} {value}"
        for label, color, value in zip(spec["labels"], spec["colors"], spec["values"], strict=True)
    )
    return [*unique.values(), question(draw, "dense/table", table)]
