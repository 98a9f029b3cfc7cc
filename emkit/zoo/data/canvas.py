"""Drawing: an anti-aliased canvas, fonts, backgrounds and shapes.

All coordinates are in units of a 96-unit-wide image, whatever its size in pixels; everything is drawn at twice the size
and box-filtered down, in integer arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from emkit.zoo.data.regions import UNITS, Region

_OVERSAMPLE = 2
_INK_HEIGHT = 0.76  # of a capital or digit, as a share of the em
FONT_FOLDER = Path(matplotlib.get_data_path()) / "fonts" / "ttf"

RGB = tuple[int, ...]  # red, green, blue
Box = tuple[float, float, float, float]


@lru_cache(maxsize=512)
def font(name: str, pixels: int) -> ImageFont.FreeTypeFont:
    """One of matplotlib's own fonts, `pixels` high (em size)."""
    return ImageFont.truetype(str(FONT_FOLDER / f"{name}.ttf"), pixels, layout_engine=ImageFont.Layout.BASIC)


def characters(text: str, left: float, y: float, height: float, face: str) -> list[Region]:
    """A region for each character of a text that starts at `left` and is centred at height `y`."""
    glyphs, precision = font(face, 100), height / 100
    ends = [left + glyphs.getlength(text[: i + 1]) * precision for i in range(len(text))]
    half = height * _INK_HEIGHT / 2
    starts = [left, *ends[:-1]]
    return [Region(c, (start, y - half, end, y + half)) for c, start, end in zip(text, starts, ends, strict=True)]


class Canvas:
    """An RGB image being drawn, in 96 units a side."""

    def __init__(self, size: int, background: RGB) -> None:
        self.size = size
        self.scale = size * _OVERSAMPLE / UNITS
        self.image = Image.new("RGB", (size * _OVERSAMPLE,) * 2, background)
        self.draw = ImageDraw.Draw(self.image)
        self.regions: list[Region] = []

    def mark(self, label: str, box: Box) -> None:
        """Remember what stands in a box."""
        self.regions.append(Region(label, box))

    def points(self, points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        return [(x * self.scale, y * self.scale) for x, y in points]

    def polygon(
        self, points: list[tuple[float, float]], fill: RGB | None, outline: RGB | None = None, width: float = 0
    ) -> None:
        scaled = self.points(points)
        if fill is not None:
            self.draw.polygon(scaled, fill=fill)
        if outline is not None:
            self.line([*points, points[0]], outline, width)

    def line(self, points: list[tuple[float, float]], fill: RGB, width: float) -> None:
        self.draw.line(self.points(points), fill=fill, width=max(1, round(width * self.scale)), joint="curve")

    def rectangle(self, box: Box, fill: RGB | None, outline: RGB | None = None, width: float = 0) -> None:
        self._within(box, self.draw.rectangle, fill, outline, width)

    def ellipse(self, box: Box, fill: RGB | None, outline: RGB | None = None, width: float = 0) -> None:
        self._within(box, self.draw.ellipse, fill, outline, width)

    def _within(self, box: Box, draw: Callable, fill: RGB | None, outline: RGB | None, width: float) -> None:
        x1, y1, x2, y2 = (round(v * self.scale) for v in box)
        line = max(1, round(width * self.scale)) if outline else 0
        draw((x1, y1, x2 - 1, y2 - 1), fill=fill, outline=outline, width=line)

    def arc(
        self, centre: tuple[float, float], radius: float, start: float, end: float, fill: RGB, width: float
    ) -> None:
        """A circular arc; angles in degrees, clockwise from three o'clock (image coordinates)."""
        box = [(centre[0] - radius) * self.scale, (centre[1] - radius) * self.scale]
        box += [(centre[0] + radius) * self.scale, (centre[1] + radius) * self.scale]
        self.draw.arc(box, start, end, fill=fill, width=max(1, round(width * self.scale)))

    def text(self, at: tuple[float, float], text: str, face: str, height: float, fill: RGB) -> None:
        """Text of this em height, centred at `at`."""
        x, y = at
        where, glyphs = (round(x * self.scale), round(y * self.scale)), font(face, round(height * self.scale))
        self.draw.text(where, text, fill=fill, font=glyphs, anchor="mm")
        self.regions += characters(text, x - glyphs.getlength(text) / self.scale / 2, y, height, face)

    def finish(self) -> Image.Image:
        return self.image.reduce(_OVERSAMPLE)


# ----------------------------------------------------------------------------------------------------- backgrounds


def paint_background(canvas: Canvas, background: dict) -> None:
    """Plain, gradient or noisy; `background` is {"kind", "rgb", optional "to", "seed", "amplitude"}."""
    if background["kind"] == "gradient":
        start, end = np.array(background["rgb"]), np.array(background["to"])
        steps = np.arange(UNITS)[:, None]
        column = ((start * (UNITS - 1 - steps) + end * steps) // (UNITS - 1)).astype(np.uint8)
        strip = Image.fromarray(column[:, None, :] if background["vertical"] else column[None, :, :])
        canvas.image.paste(strip.resize(canvas.image.size, Image.Resampling.NEAREST))


def add_noise(image: Image.Image, seed: int, amplitude: int) -> Image.Image:
    """Uniform integer noise in [-amplitude, amplitude] on every channel."""
    random = np.random.Generator(np.random.PCG64(seed))
    pixels = np.asarray(image, dtype=np.int16)
    noise = random.integers(-amplitude, amplitude + 1, pixels.shape, dtype=np.int16)
    return Image.fromarray(np.clip(pixels + noise, 0, 255).astype(np.uint8))


# ---------------------------------------------------------------------------------------------------------- shapes


def _star(x: float, y: float, r: float) -> list[tuple[float, float]]:
    """Five points, stretched to touch all four sides of its box."""
    width, height = math.sin(2 * math.pi / 5), 1 + math.cos(math.pi / 5)
    unit = [
        (k * math.sin(i * math.pi / 5) / width, 2 * (1 - k * math.cos(i * math.pi / 5)) / height - 1)
        for i, k in enumerate((1, 0.42) * 5)
    ]
    return [(x + r * u, y + r * v) for u, v in unit]


def _cross(x: float, y: float, r: float) -> list[tuple[float, float]]:
    w = r * 0.36
    return [(x - w, y - r), (x + w, y - r), (x + w, y - w), (x + r, y - w), (x + r, y + w), (x + w, y + w),
            (x + w, y + r), (x - w, y + r), (x - w, y + w), (x - r, y + w), (x - r, y - w), (x - w, y - w)]  # fmt: skip


_POLYGONS = {
    "square": lambda x, y, r: [(x - r, y - r), (x + r, y - r), (x + r, y + r), (x - r, y + r)],
    "triangle": lambda x, y, r: [(x, y - r), (x + r, y + r), (x - r, y + r)],
    "star": _star,
    "cross": _cross,
}


def draw_shape(canvas: Canvas, shape: str, x: float, y: float, r: float, rgb: RGB) -> None:
    """A filled shape inside the box (x - r, y - r, x + r, y + r)."""
    box = (x - r, y - r, x + r, y + r)
    if shape == "circle":
        canvas.ellipse(box, rgb)
    elif shape == "ring":
        canvas.ellipse(box, None, rgb, r * 0.4)
    else:
        canvas.polygon(_POLYGONS[shape](x, y, r), rgb)


def draw_stripes(canvas: Canvas, shape: str, x: float, y: float, r: float, rgb: RGB) -> None:
    """Light horizontal stripes over a shape just drawn: only where its own colour is."""
    left, top, right, bottom = (round(v * canvas.scale) for v in (x - r, y - r, x + r, y + r))
    region = np.array(canvas.image.crop((left, top, right, bottom)))
    inside = (region == np.array(rgb, dtype=np.uint8)).all(axis=2)
    period = round(5 * canvas.scale)
    rows = (np.arange(region.shape[0]) % period) >= round(3 * canvas.scale)
    region[inside & rows[:, None]] = (245, 245, 245)
    canvas.image.paste(Image.fromarray(region), (left, top))
