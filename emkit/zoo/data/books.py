"""OCRVQA: book covers with a title of one or two words, an author and a genre (as a coloured band with its name)."""

from __future__ import annotations

from emkit.zoo.data.canvas import UNITS, Canvas, draw_shape
from emkit.zoo.data.qa import QA, question
from emkit.zoo.data.regions import Picture
from emkit.zoo.data.sampling import Draw, Spec
from emkit.zoo.data.scenes import jitter, light
from emkit.zoo.data.words import AUTHORS, COLORS, GENRES, SHAPES, TITLE_WORDS

_TITLE_FONTS = ("DejaVuSans-Bold", "DejaVuSerif-Bold", "DejaVuSansMono-Bold", "STIXGeneralBol")
_AUTHOR_FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSerif")
_INK = (25, 25, 30)


def sample(draw: Draw) -> Spec:
    genre = draw.pick(tuple(GENRES))
    return {
        "title": draw.sample(TITLE_WORDS, draw.pick((1, 2, 2))),
        "author": draw.pick(AUTHORS),
        "genre": genre,
        "rgb": jitter(draw, GENRES[genre], 12),
        "table": jitter(draw, (150, 140, 130), 40),
        "cover": light(draw),
        "title_font": draw.pick(_TITLE_FONTS),
        "author_font": draw.pick(_AUTHOR_FONTS),
        "shift": [draw.integer(-3, 3), draw.integer(-2, 2)],
        "band_below": draw.chance(0.5),
        "ornament": [draw.pick(SHAPES), jitter(draw, COLORS[draw.pick(tuple(COLORS))], 15), draw.integer(22, 74)],
    }


def render(spec: Spec, size: int) -> Picture:
    canvas = Canvas(size, tuple(spec["table"]))
    dx, dy = spec["shift"]
    left, top, right, bottom = 6 + dx, 3 + dy, 90 + dx, 93 + dy
    canvas.rectangle((left, top, right, bottom), tuple(spec["cover"]))
    band = bottom - 15 if spec["band_below"] else top
    canvas.rectangle((left, band, right, band + 15), tuple(spec["rgb"]))
    canvas.mark(spec["genre"], (left, band, right, band + 15))
    middle = UNITS / 2 + dx
    canvas.text((middle, band + 7.5), spec["genre"].upper(), "DejaVuSans-Bold", 10, (255, 255, 255))
    start = top + (10 if spec["band_below"] else 25)
    for line, word in enumerate(spec["title"]):
        canvas.text((middle, start + 16 * line), word, spec["title_font"], 15, _INK)
    shape, rgb, x = spec["ornament"]
    author_y = bottom - (25 if spec["band_below"] else 10)
    if len(spec["title"]) == 1:
        draw_shape(canvas, shape, x + dx, author_y - 20, 7, tuple(rgb))
        canvas.mark(shape, (x + dx - 7, author_y - 27, x + dx + 7, author_y - 13))
    canvas.text((middle, author_y), spec["author"], spec["author_font"], 12, _INK)
    return Picture(canvas.finish(), tuple(canvas.regions))


def ask(spec: Spec, draw: Draw) -> list[QA]:
    title, genre = " ".join(spec["title"]), spec["genre"]
    asked = genre if draw.chance(0.5) else draw.pick([g for g in GENRES if g != genre])
    qas = [
        question(draw, "ocrvqa/author", spec["author"]),
        question(draw, "ocrvqa/title", title),
        question(draw, "ocrvqa/genre", genre),
        question(draw, "ocrvqa/is-genre", "yes" if asked == genre else "no", a=asked),
    ]
    return [*qas, question(draw, "dense/text", f"title {title} author {spec['author']} genre {genre}")]
