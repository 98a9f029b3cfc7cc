"""MathVista: small figures with numbers; half the questions multiple choice, half a free-form integer.

Columns as in the original: question_type, answer_type, choices, answer_option, task, skills. The score averages the
rows "geometry reasoning", "algebraic reasoning" and "geometry problem solving", so most figures are in those.
"""

from __future__ import annotations

import math

from emkit.zoo.data import figures, multiple_choice
from emkit.zoo.data.canvas import UNITS, Canvas
from emkit.zoo.data.figures import INK, along, label
from emkit.zoo.data.qa import QA, question, say
from emkit.zoo.data.regions import Picture
from emkit.zoo.data.sampling import Draw, Spec
from emkit.zoo.data.words import COLORS

_GEOMETRY = {"task": "geometry problem solving", "skills": ["geometry reasoning"]}
_BOTH = {"task": "geometry problem solving", "skills": ["geometry reasoning", "algebraic reasoning"]}
_ALGEBRA = {"task": "math word problem", "skills": ["algebraic reasoning"]}
_STATISTICS = {"task": "figure question answering", "skills": ["arithmetic reasoning", "statistical reasoning"]}
_CATEGORY = {
    "third-angle": _BOTH,
    "line-angle": _GEOMETRY,
    "perimeter": _GEOMETRY,
    "area": _GEOMETRY,
    "side": _BOTH,
    "balance": _ALGEBRA,
    "sum": _STATISTICS,
    "bar-difference": _STATISTICS,
}


# ------------------------------------------------------------------------------------------------ specifications


def _triangle(draw: Draw) -> Spec:
    a = draw.integer(3, 9) * 10
    b = draw.integer(3, min(9, (150 - a) // 10)) * 10
    return {"a": a, "b": b}


def _line(draw: Draw) -> Spec:
    return {"a": draw.integer(3, 15) * 10}


def _rectangle(draw: Draw) -> Spec:
    return {"w": draw.integer(2, 9), "h": draw.integer(2, 9), "unknown": draw.chance(0.35)}


def _balance(draw: Draw) -> Spec:
    x, a = draw.integer(1, 9), draw.integer(1, 9)
    return {"x": x, "a": a, "x_first": draw.chance(0.5)}


def _bars(draw: Draw) -> Spec:
    colors = draw.sample([c for c in COLORS if c != "black"], 3)
    return {"values": draw.sample(range(1, 10), 3), "colors": colors}


_FIGURES = {"triangle": _triangle, "line": _line, "rectangle": _rectangle, "balance": _balance, "bars": _bars}


def sample(draw: Draw) -> Spec:
    figure = draw.pick(
        ("triangle", "triangle", "line", "line", "rectangle", "rectangle", "rectangle", "balance", "balance", "bars")
    )
    return {"figure": figure, "style": figures.style(draw), **_FIGURES[figure](draw)}


# ----------------------------------------------------------------------------------------------------- rendering


def _draw_triangle(canvas: Canvas, spec: Spec, tint: tuple) -> None:
    a, b = spec["a"], spec["b"]
    dx, dy = spec["style"]["shift"]
    ratio = 1 / (1 / math.tan(math.radians(a)) + 1 / math.tan(math.radians(b)))  # height over base
    height = min(76.0, 78.0 * ratio)
    base, floor = height / ratio, UNITS / 2 + height / 2 + dy
    left, right = (UNITS / 2 - base / 2 + dx, floor), (UNITS / 2 + base / 2 + dx, floor)
    top = (left[0] + height / math.tan(math.radians(a)), floor - height)
    canvas.polygon([left, right, top], tint, INK, 1.2)
    label(canvas, along(left, a / 2, _inset(a)), a)
    label(canvas, along(right, 180 - b / 2, _inset(b)), b)
    label(canvas, along(top, 180 + a + (180 - a - b) / 2, _inset(180 - a - b)), "x")


def _inset(degrees: float) -> float:
    """How far from its corner the label of an angle stands: farther in a narrow one."""
    return max(15.0, 24.0 - degrees / 7)


def _draw_line(canvas: Canvas, spec: Spec, tint: tuple) -> None:
    dx, dy = spec["style"]["shift"]
    corner = (UNITS / 2 + dx, 70.0 + dy)
    a = spec["a"]
    canvas.line([(4, corner[1]), (92, corner[1])], INK, 1.4)
    canvas.line([corner, along(corner, a, 52)], INK, 1.4)
    canvas.arc(corner, 9, -a, 0, INK, 1)
    label(canvas, along(corner, a / 2, 23), a)
    label(canvas, along(corner, (180 + a) / 2, 20), "x")


def _draw_rectangle(canvas: Canvas, spec: Spec, tint: tuple) -> None:
    dx, dy = spec["style"]["shift"]
    unit = min(66 / spec["w"], 62 / spec["h"], 13)
    w, h = spec["w"] * unit / 2, spec["h"] * unit / 2
    x, y = 53 + dx, 43 + dy
    canvas.rectangle((x - w, y - h, x + w, y + h), tint, INK, 1.2)
    label(canvas, (x, y + h + 8), "x" if spec["unknown"] else spec["w"], 12)
    label(canvas, (x - w - 8, y), spec["h"], 12)


def _draw_balance(canvas: Canvas, spec: Spec, tint: tuple) -> None:
    """Two pans: x and a weight on one, one number on the other."""
    dx, dy = spec["style"]["shift"]
    y = 58.0 + dy
    canvas.polygon([(48 + dx, y + 2), (58 + dx, y + 24), (38 + dx, y + 24)], tuple(spec["style"]["strong"]))
    canvas.line([(6 + dx, y), (90 + dx, y)], INK, 2)
    two = ("x", spec["a"]) if spec["x_first"] else (spec["a"], "x")
    for centre, text in ((16, two[0]), (36, two[1]), (74, spec["x"] + spec["a"])):
        canvas.rectangle((centre + dx - 9, y - 19, centre + dx + 9, y - 1), tint, INK, 1)
        label(canvas, (centre + dx, y - 10), text, 12)


def _draw_bars(canvas: Canvas, spec: Spec, tint: tuple) -> None:
    dx, dy = spec["style"]["shift"]
    canvas.line([(10 + dx, 84 + dy), (88 + dx, 84 + dy)], INK, 1.2)
    for i, (value, color) in enumerate(zip(spec["values"], spec["colors"], strict=True)):
        x, top = 24 + 25 * i + dx, 84 + dy - value * 7
        canvas.rectangle((x - 8, top, x + 8, 84 + dy), COLORS[color])
        canvas.mark(f"{color} bar", (x - 8, top, x + 8, 84 + dy))
        label(canvas, (x, top - 7), value, 12)


_DRAWERS = {
    "triangle": _draw_triangle,
    "line": _draw_line,
    "rectangle": _draw_rectangle,
    "balance": _draw_balance,
    "bars": _draw_bars,
}


def render(spec: Spec, size: int) -> Picture:
    canvas = Canvas(size, tuple(spec["style"]["paper"]))
    _DRAWERS[spec["figure"]](canvas, spec, tuple(spec["style"]["tint"]))
    return Picture(canvas.finish(), tuple(canvas.regions))


# ----------------------------------------------------------------------------------------------------- questions


def _problems(spec: Spec, draw: Draw) -> list[tuple[str, dict, int, int]]:
    """(kind, slots, answer, step between options) of every problem the figure poses."""
    figure = spec["figure"]
    if figure == "triangle":
        return [("third-angle", {}, 180 - spec["a"] - spec["b"], 10)]
    if figure == "line":
        return [("line-angle", {}, 180 - spec["a"], 10)]
    if figure == "balance":
        return [("balance", {}, spec["x"], 1)]
    if figure == "bars":
        (high, high_color), (low, low_color) = sorted(zip(spec["values"], spec["colors"], strict=True), reverse=True)[
            :: draw.pick((1, 2))
        ][:2]
        return [
            ("bar-difference", {"a": high_color, "b": low_color}, high - low, 1),
            ("sum", {}, sum(spec["values"]), 1),
        ]
    w, h = spec["w"], spec["h"]
    if spec["unknown"]:
        return [("side", {"a": w * h}, w, 1)]
    return [("perimeter", {}, 2 * (w + h), 2), ("area", {}, w * h, h)]


def _both_forms(draw: Draw, kind: str, slots: dict, answer: int, step: int) -> list[QA]:
    """The problem in free form and as multiple choice."""
    template, common = f"mathvista/{kind}", {**_CATEGORY[kind], "answer_type": "integer"}
    choices = multiple_choice.options(draw, answer, step)
    chosen = multiple_choice.letter(answer, choices)
    free = {**common, "question_type": "free_form", "choices": [], "answer_option": "", "answer_value": str(answer)}
    multi = {
        **common,
        "question_type": "multi_choice",
        "answer_type": "text",
        "choices": choices,
        "answer_option": chosen,
        "answer_value": str(answer),
    }
    return [
        question(draw, template, answer, free, **slots),
        QA(multiple_choice.with_options(say(draw, template, **slots), choices), chosen, template, multi),
    ]


def _described(spec: Spec) -> str:
    figure = spec["figure"]
    if figure == "triangle":
        return f"triangle angle {spec['a']} angle {spec['b']} angle x"
    if figure == "line":
        return f"line angle {spec['a']} angle x"
    if figure == "rectangle":
        return f"rectangle {'x' if spec['unknown'] else spec['w']} wide {spec['h']} high"
    if figure == "balance":
        left = ("x", str(spec["a"]))
        return f"scale {' + '.join(left if spec['x_first'] else left[::-1])} = {spec['x'] + spec['a']}"
    return "bars " + " , ".join(f"{color} {value}" for value, color in zip(spec["values"], spec["colors"], strict=True))


def ask(spec: Spec, draw: Draw) -> list[QA]:
    qas = [qa for problem in _problems(spec, draw) for qa in _both_forms(draw, *problem)]
    return [*qas, question(draw, "dense/figure", _described(spec))]
