"""TextVQA: one or two signs with a word or a number, in several fonts, within a street scene of plain shapes."""

from __future__ import annotations

from emkit.zoo.data.canvas import UNITS, Canvas, add_noise, paint_background
from emkit.zoo.data.qa import QA, question
from emkit.zoo.data.regions import Picture
from emkit.zoo.data.sampling import Draw, Spec
from emkit.zoo.data.scenes import jitter, sample_background
from emkit.zoo.data.words import COLORS, SIGN_WORDS

FONTS = ("DejaVuSans-Bold", "DejaVuSans", "DejaVuSerif-Bold", "DejaVuSansMono-Bold", "STIXGeneralBol", "cmb10")
_WHITE = (252, 252, 252)
_LIGHT_COLORS = ("yellow", "orange")


def _sign(draw: Draw, color: str, centre_y: int, wander: int) -> dict:
    """A sign whose centre is at most `wander` units above or below `centre_y`."""
    text = draw.pick(SIGN_WORDS) if draw.chance(0.75) else str(draw.integer(10, 99))
    height = min(draw.integer(18, 22), 29 - 2 * len(text))
    width = round(len(text) * height * 0.82) + 8
    x = draw.integer(width // 2 + 2, UNITS - width // 2 - 2)
    return {
        "text": text,
        "color": color,
        "rgb": jitter(draw, COLORS[color], 10),
        "font": draw.pick(FONTS),
        "height": height,
        "width": width,
        "x": x,
        "y": centre_y + draw.integer(-wander, wander),
        "post": draw.chance(0.5),
    }


def sample(draw: Draw) -> Spec:
    two = draw.chance(0.5)
    rows = (26, 69) if two else (draw.integer(30, 62),)
    colors = draw.sample(tuple(COLORS), len(rows))
    signs = [_sign(draw, color, y, 4 if two else 7) for color, y in zip(colors, rows, strict=True)]
    clutter = [
        [
            draw.integer(0, 90),
            draw.integer(0, 90),
            draw.integer(6, 20),
            draw.integer(6, 20),
            jitter(draw, (200, 205, 210), 25),
        ]
        for _ in range(draw.integer(0, 4))
    ]
    return {"background": sample_background(draw), "clutter": clutter, "signs": signs}


def _draw_sign(canvas: Canvas, sign: dict) -> None:
    half, tall = sign["width"] / 2, sign["height"] * 0.72
    x, y = sign["x"], sign["y"]
    if sign["post"]:
        canvas.rectangle((x - 1.5, y, x + 1.5, y + tall + 14), (110, 110, 110))
    canvas.rectangle((x - half, y - tall, x + half, y + tall), tuple(sign["rgb"]))
    canvas.mark(f"{sign['color']} sign", (x - half, y - tall, x + half, y + tall))
    ink = (20, 20, 20) if sign["color"] in _LIGHT_COLORS else _WHITE
    canvas.text((x, y), sign["text"], sign["font"], sign["height"], ink)


def render(spec: Spec, size: int) -> Picture:
    background = spec["background"]
    canvas = Canvas(size, tuple(background["rgb"]))
    paint_background(canvas, background)
    for x, y, width, height, rgb in spec["clutter"]:
        canvas.rectangle((x, y, x + width, y + height), tuple(rgb))
    for sign in spec["signs"]:
        _draw_sign(canvas, sign)
    image = canvas.finish()
    if background["kind"] == "noisy":
        image = add_noise(image, background["seed"], background["amplitude"])
    return Picture(image, tuple(canvas.regions))


def _read(draw: Draw, template: str, answer: str, **slots: object) -> QA:
    return question(draw, template, answer, {"answers": [answer] * 10}, **slots)


def ask(spec: Spec, draw: Draw) -> list[QA]:
    signs = spec["signs"]
    qas = [_read(draw, "textvqa/color", s["text"], a=s["color"]) for s in signs]
    if len(signs) == 1:
        qas.append(_read(draw, "textvqa/only", signs[0]["text"]))
        if signs[0]["text"].isdigit():
            qas.append(_read(draw, "textvqa/number", signs[0]["text"]))
    else:
        qas += [
            _read(draw, "textvqa/place", s["text"], a=place) for s, place in zip(signs, ("top", "bottom"), strict=True)
        ]
        if signs[0]["text"] != signs[1]["text"]:
            asked = draw.pick(signs)
            qas.append(_read(draw, "textvqa/which", asked["color"], word=asked["text"]))
    transcription = " , ".join(f"{s['color']} {s['text']}" for s in signs)
    return [*qas[:5], question(draw, "dense/text", transcription)]
