"""MATH-Vision: competition-like figures in the four categories whose mean is the score.

Metric geometry (angle, area, length) and solid geometry; about a third of the questions have options.
"""

from __future__ import annotations

import math

from emkit.zoo.data import figures, multiple_choice
from emkit.zoo.data.canvas import RGB, UNITS, Canvas
from emkit.zoo.data.figures import INK, along, label
from emkit.zoo.data.qa import QA, question, say
from emkit.zoo.data.regions import Picture
from emkit.zoo.data.sampling import Draw, Spec

_CATEGORY = {
    "clock": "metric geometry - angle",
    "right-angle": "metric geometry - angle",
    "grid-area": "metric geometry - area",
    "frame-area": "metric geometry - area",
    "ruler": "metric geometry - length",
    "path": "metric geometry - length",
    "cubes": "solid geometry",
    "volume": "solid geometry",
}
_CATEGORY_FIGURES = (("clock", "right-angle"), ("grid",), ("ruler", "path"), ("cubes", "box"))


# ------------------------------------------------------------------------------------------------ specifications


def _clock(draw: Draw) -> Spec:
    """Two hands on hour marks, 30 to 180 degrees apart; both point exactly at marks, as in many puzzles."""
    hour, apart = draw.integer(0, 11), draw.integer(1, 6)
    return {"hour": hour, "minute": (hour + draw.pick((1, -1)) * apart) % 12}


def _right_angle(draw: Draw) -> Spec:
    return {"a": draw.integer(2, 7) * 10, "mirrored": draw.chance(0.5)}


def _grid(draw: Draw) -> Spec:
    """A shaded staircase on a grid: a height for every column."""
    n = draw.integer(3, 5)
    return {"n": n, "heights": [draw.integer(0, n) for _ in range(n - 1)] + [draw.integer(1, n - 1)]}


def _ruler(draw: Draw) -> Spec:
    start = draw.integer(0, 6)
    return {"start": start, "end": draw.integer(start + 1, 9)}


def _path(draw: Draw) -> Spec:
    """A monotone lattice path on a grid of five cells, as alternating runs to the right and up."""
    return {"runs": [draw.integer(1, 2) for _ in range(draw.integer(2, 4))]}


def _cubes(draw: Draw) -> Spec:
    """Towers of unit cubes in a row, no taller than three."""
    return {"towers": [draw.integer(1, 3) for _ in range(draw.integer(1, 3))], "depth": draw.integer(1, 2)}


def _box(draw: Draw) -> Spec:
    return {"w": draw.integer(2, 5), "h": draw.integer(2, 5), "d": draw.integer(2, 4)}


_FIGURES = {
    "clock": _clock,
    "right-angle": _right_angle,
    "grid": _grid,
    "ruler": _ruler,
    "path": _path,
    "cubes": _cubes,
    "box": _box,
}


def sample(draw: Draw) -> Spec:
    figure = draw.pick(draw.pick(_CATEGORY_FIGURES))
    return {"figure": figure, "style": figures.style(draw), **_FIGURES[figure](draw)}


# ----------------------------------------------------------------------------------------------------- rendering


def _draw_clock(canvas: Canvas, spec: Spec) -> None:
    dx, dy = spec["style"]["shift"]
    centre = (UNITS / 2 + dx, UNITS / 2 + dy)
    canvas.ellipse(
        (centre[0] - 41, centre[1] - 41, centre[0] + 41, centre[1] + 41), tuple(spec["style"]["tint"]), INK, 1.5
    )
    for mark in range(12):
        canvas.line([along(centre, 30 * mark, 35), along(centre, 30 * mark, 40)], INK, 1.2)
    for hand, length, width in (("hour", 21, 4), ("minute", 33, 2)):
        x, y = along(centre, 90 - 30 * spec[hand], length)
        canvas.line([centre, (x, y)], INK, width)
        canvas.mark(hand, (x - 6, y - 6, x + 6, y + 6))


def _draw_right_angle(canvas: Canvas, spec: Spec) -> None:
    dx, dy = spec["style"]["shift"]
    sign, corner = (-1, (82.0 + dx, 84.0 + dy)) if spec["mirrored"] else (1, (14.0 + dx, 84.0 + dy))

    def ray(degrees: float, length: float) -> tuple[float, float]:
        return along(corner, degrees if sign > 0 else 180 - degrees, length)

    canvas.polygon([corner, ray(0, 66), ray(45, 66), ray(90, 66)], tuple(spec["style"]["tint"]))
    for degrees in (0, spec["a"], 90):
        canvas.line([corner, ray(degrees, 70)], INK, 1.4)
    canvas.line([ray(0, 7), (ray(0, 7)[0], corner[1] - 7), ray(90, 7)], INK, 1)
    label(canvas, ray(spec["a"] / 2, 52 - spec["a"] / 3), spec["a"])
    label(canvas, ray((spec["a"] + 90) / 2, 52 - (90 - spec["a"]) / 3), "x")


def _draw_grid(canvas: Canvas, spec: Spec) -> None:
    dx, dy = spec["style"]["shift"]
    n = spec["n"]
    cell = 78 // n
    left, bottom = 9 + dx, 9 + dy + n * cell
    canvas.rectangle((left, bottom - n * cell, left + n * cell, bottom), (255, 255, 255))
    for column, height in enumerate(spec["heights"]):
        x = left + column * cell
        if height:
            canvas.rectangle((x, bottom - height * cell, x + cell, bottom), tuple(spec["style"]["strong"]))
            canvas.mark("shaded", (x, bottom - height * cell, x + cell, bottom))
        canvas.mark("white", (x, bottom - n * cell, x + cell, bottom - height * cell))
    for i in range(n + 1):
        canvas.line([(left + i * cell, bottom - n * cell), (left + i * cell, bottom)], INK, 1)
        canvas.line([(left, bottom - i * cell), (left + n * cell, bottom - i * cell)], INK, 1)


def _draw_ruler(canvas: Canvas, spec: Spec) -> None:
    dy = spec["style"]["shift"][1]
    top = 54 + dy
    canvas.rectangle((2, top, 94, top + 26), tuple(spec["style"]["tint"]), INK, 1)
    for mark in range(10):
        x = 7.5 + 9 * mark
        canvas.line([(x, top), (x, top + 7)], INK, 1)
        label(canvas, (x, top + 16), mark, 9.5)
    bar = (7.5 + 9 * spec["start"], top - 16, 7.5 + 9 * spec["end"], top - 4)
    canvas.rectangle(bar, tuple(spec["style"]["strong"]))
    canvas.mark("bar", bar)


def _draw_path(canvas: Canvas, spec: Spec) -> None:
    dx, dy = spec["style"]["shift"]
    left, top, cell = 10 + dx, 10 + dy, 19
    for i in range(5):
        canvas.line([(left + i * cell, top), (left + i * cell, top + 4 * cell)], (175, 175, 180), 1)
        canvas.line([(left, top + i * cell), (left + 4 * cell, top + i * cell)], (175, 175, 180), 1)
    x, y = left, top + 4 * cell
    points = [(x, y)]
    for i, run in enumerate(spec["runs"]):
        x, y = (x + run * cell, y) if i % 2 == 0 else (x, y - run * cell)
        u, v = points[-1]
        canvas.mark("path", (min(x, u) - 2, min(y, v) - 2, max(x, u) + 2, max(y, v) + 2))
        points.append((x, y))
    canvas.line(points, tuple(spec["style"]["strong"]), 4)
    for x, y in (points[0], points[-1]):
        canvas.ellipse((x - 4, y - 4, x + 4, y + 4), INK)


def _shade(rgb: list[int], percent: int) -> RGB:
    return tuple(v * percent // 100 for v in rgb)


def _draw_block(canvas: Canvas, spec: Spec, x: float, y: float, w: float, h: float, d: float) -> None:
    """A block in oblique projection, its front face's lower left corner at (x, y)."""
    rgb = spec["style"]["tint"]
    canvas.polygon([(x, y), (x + w, y), (x + w, y - h), (x, y - h)], _shade(rgb, 92), INK, 1)
    canvas.polygon([(x, y - h), (x + w, y - h), (x + w + d, y - h - d), (x + d, y - h - d)], _shade(rgb, 100), INK, 1)
    canvas.polygon([(x + w, y), (x + w, y - h), (x + w + d, y - h - d), (x + w + d, y - d)], _shade(rgb, 75), INK, 1)


def _draw_cubes(canvas: Canvas, spec: Spec) -> None:
    dx, dy = spec["style"]["shift"]
    side, slant = 18, 8
    for layer in reversed(range(spec["depth"])):
        for column, height in enumerate(spec["towers"]):
            for level in range(height):
                x = 12 + dx + column * side + layer * slant
                y = 86 + dy - level * side - layer * slant
                _draw_block(canvas, spec, x, y, side, side, slant)
                canvas.mark("cube", (x, y - side, x + side, y))


def _draw_box(canvas: Canvas, spec: Spec) -> None:
    dx, dy = spec["style"]["shift"]
    w, h, d = spec["w"] * 10, spec["h"] * 10, spec["d"] * 5
    x, y = 20 + dx, 79 + dy
    _draw_block(canvas, spec, x, y, w, h, d)
    label(canvas, (x + w / 2, y + 8), spec["w"], 12)
    label(canvas, (x - 8, y - h / 2), spec["h"], 12)
    label(canvas, (x + w + d / 2 + 7, y - d / 2 + 3), spec["d"], 12)


_DRAWERS = {
    "clock": _draw_clock,
    "right-angle": _draw_right_angle,
    "grid": _draw_grid,
    "ruler": _draw_ruler,
    "path": _draw_path,
    "cubes": _draw_cubes,
    "box": _draw_box,
}


def render(spec: Spec, size: int) -> Picture:
    canvas = Canvas(size, tuple(spec["style"]["paper"]))
    _DRAWERS[spec["figure"]](canvas, spec)
    return Picture(canvas.finish(), tuple(canvas.regions))


# ----------------------------------------------------------------------------------------------------- questions


def _problems(spec: Spec) -> list[tuple[str, int, int]]:
    """(kind, answer, step between options) of every problem the figure poses."""
    match spec["figure"]:
        case "clock":
            apart = (spec["hour"] - spec["minute"]) % 12
            return [("clock", 30 * min(apart, 12 - apart), 30)]
        case "right-angle":
            return [("right-angle", 90 - spec["a"], 10)]
        case "grid":
            shaded = sum(spec["heights"])
            return [("grid-area", shaded, 1), ("frame-area", spec["n"] ** 2 - shaded, 1)]
        case "ruler":
            return [("ruler", spec["end"] - spec["start"], 1)]
        case "path":
            return [("path", sum(spec["runs"]), 1)]
        case "cubes":
            return [("cubes", sum(spec["towers"]) * spec["depth"], 1)]
        case "box":
            return [("volume", math.prod((spec["w"], spec["h"], spec["d"])), spec["d"])]
    raise AssertionError(spec["figure"])


def _ask_both(draw: Draw, kind: str, answer: int, step: int) -> list[QA]:
    template, category = f"mathvision/{kind}", _CATEGORY[kind]
    choices = multiple_choice.options(draw, answer, step)
    free = question(draw, template, answer, {"category": category, "choices": []})
    chosen = QA(
        multiple_choice.with_options(say(draw, template), choices),
        multiple_choice.letter(answer, choices),
        template,
        {"category": category, "choices": choices},
    )
    return [free, chosen]


def _described(spec: Spec) -> str:
    match spec["figure"]:
        case "clock":
            return f"clock hour {spec['hour'] or 12} minute {spec['minute'] or 12}"
        case "right-angle":
            return f"angle {spec['a']} angle x"
        case "grid":
            return f"grid {spec['n']} shaded {' '.join(map(str, spec['heights']))}"
        case "ruler":
            return f"ruler bar {spec['start']} to {spec['end']}"
        case "path":
            return f"grid path {' '.join(map(str, spec['runs']))}"
        case "cubes":
            return f"cubes {' '.join(map(str, spec['towers']))} times {spec['depth']}"
    return f"box {spec['w']} wide {spec['h']} high {spec['d']} long"


def ask(spec: Spec, draw: Draw) -> list[QA]:
    qas = [qa for problem in _problems(spec) for qa in _ask_both(draw, *problem)]
    return [*qas, question(draw, "dense/figure", _described(spec))]
