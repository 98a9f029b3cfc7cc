"""VizWiz: everyday things photographed badly (blurred, dark, tilted, cut off), and questions that cannot be answered.

The benchmark column `answers` holds ten annotators' answers, mostly agreeing, as in the original.
"""

from __future__ import annotations

import math

from PIL import Image, ImageEnhance, ImageFilter

from emkit.zoo.data.canvas import UNITS, Canvas, add_noise
from emkit.zoo.data.qa import QA, box_text, question, say
from emkit.zoo.data.regions import Picture, Region
from emkit.zoo.data.sampling import Draw, Spec
from emkit.zoo.data.scenes import jitter
from emkit.zoo.data.things import draw_thing
from emkit.zoo.data.words import COLORS, THINGS

UNANSWERABLE = "unanswerable"
_ANNOTATORS = 10
_KINDS = (*THINGS, "card")


def _thing(draw: Draw, kind: str, x: int, y: int, r: int) -> dict:
    color = draw.pick(tuple(COLORS))
    thing = {"kind": kind, "color": color, "rgb": jitter(draw, COLORS[color], 18), "x": x, "y": y, "r": r}
    return thing | ({"number": draw.integer(10, 99)} if kind == "card" else {})


def _defects(draw: Draw) -> dict:
    """What is wrong with the photograph: blur (tenths of a unit), brightness (%), tilt (degrees), noise (levels)."""
    spoiled = draw.pick(("dark", "blurred")) if draw.chance(0.16) else ""
    return {
        "blur": draw.integer(110, 160) if spoiled == "blurred" else draw.pick((0, 0, 6, 9, 12, 15)),
        "brightness": draw.integer(3, 8) if spoiled == "dark" else draw.integer(45, 115),
        "tilt": draw.integer(-20, 20),
        "noise": draw.integer(2, 14),
        "seed": draw.integer(0, 2**31),
        "spoiled": spoiled,
    }


def sample(draw: Draw) -> Spec:
    base = draw.integer(120, 215)
    walls = [[min(255, max(0, base + shift + draw.integer(-18, 18))) for _ in range(3)] for shift in (15, -25)]
    spec = {"wall": walls[0], "table": walls[1], "horizon": draw.integer(50, 75), "defects": _defects(draw)}
    if draw.chance(0.55):
        r = draw.integer(22, 30)
        things = [
            _thing(draw, draw.pick(_KINDS), UNITS // 2 + draw.integer(-16, 16), UNITS // 2 + draw.integer(-12, 14), r)
        ]
    else:
        kinds = draw.sample(_KINDS, 2)
        things = [
            _thing(draw, kind, x + draw.integer(-5, 5), 50 + draw.integer(-12, 12), draw.integer(17, 20))
            for kind, x in zip(kinds, (26, 70), strict=True)
        ]
    return spec | {"things": things}


def render(spec: Spec, size: int) -> Picture:
    canvas = Canvas(size, tuple(spec["wall"]))
    canvas.rectangle((0, spec["horizon"], UNITS, UNITS), tuple(spec["table"]))
    for thing in spec["things"]:
        draw_thing(canvas, thing)
        canvas.mark(f"{thing['color']} {thing['kind']}", _box(thing))
    defects = spec["defects"]
    canvas.image = canvas.image.rotate(defects["tilt"], Image.Resampling.BILINEAR, fillcolor=tuple(spec["wall"]))
    image = canvas.finish()
    if defects["blur"]:
        image = image.filter(ImageFilter.BoxBlur(defects["blur"] / 10 * size / UNITS))
    image = ImageEnhance.Brightness(image).enhance(defects["brightness"] / 100)
    image = add_noise(image, defects["seed"], defects["noise"])
    regions = () if defects["spoiled"] else (Region(r.label, _tilted(r.box, defects["tilt"])) for r in canvas.regions)
    return Picture(image, tuple(regions))


def _box(thing: dict) -> tuple[int, int, int, int]:
    return thing["x"] - thing["r"], thing["y"] - thing["r"], thing["x"] + thing["r"], thing["y"] + thing["r"]


def _tilted(box: tuple[float, float, float, float], degrees: float) -> tuple[float, float, float, float]:
    """A box moved as its centre moves when the picture is turned counter-clockwise about its middle."""
    x, y = (box[0] + box[2]) / 2 - UNITS / 2, (box[1] + box[3]) / 2 - UNITS / 2
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    dx, dy = x * cos + y * sin - x, y * cos - x * sin - y
    return box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy


def _annotated(draw: Draw, template: str, answer: str, other: str, **slots: object) -> QA:
    """A question with ten annotators: most give `answer`, up to three `other` or up."""
    dissent = draw.pick((0, 0, 1, 1, 2, 3))
    answers = [answer] * (_ANNOTATORS - dissent) + [draw.pick((other, UNANSWERABLE)) for _ in range(dissent)]
    kind = template if answer != UNANSWERABLE else "vizwiz/unanswerable"
    return QA(say(draw, template, **slots), answer, kind, {"answers": draw.shuffled(answers)})


def _ask_color(draw: Draw, thing: dict) -> QA:
    return _annotated(draw, "vizwiz/color", thing["color"], "black", a=thing["kind"])


def _ask_what(draw: Draw, thing: dict) -> QA:
    return _annotated(draw, "vizwiz/what", thing["kind"], f"{thing['color']} {thing['kind']}")


def _ask_absent(draw: Draw, things: list[dict]) -> QA:
    absent = draw.pick([k for k in _KINDS if k not in {t["kind"] for t in things}])
    template = draw.pick(("vizwiz/color", "vizwiz/beside"))
    return _annotated(draw, template, UNANSWERABLE, "nothing", a=absent)


def _answerable(draw: Draw, things: list[dict]) -> list[QA]:
    qas = [_ask_color(draw, draw.pick(things))]
    if len(things) == 1:
        qas.append(_ask_what(draw, things[0]))
    else:
        one, other = draw.shuffled(things)
        qas.append(_annotated(draw, "vizwiz/beside", other["kind"], f"{other['color']} {other['kind']}", a=one["kind"]))
    qas += [_annotated(draw, "vizwiz/number", str(t["number"]), "number", a=t["kind"]) for t in things if "number" in t]
    return qas


def _unanswerable(draw: Draw, spec: Spec) -> list[QA]:
    """Questions on a spoiled photograph: neither shows what a thing is; only a dark one hides its colour too."""
    kind = draw.pick(spec["things"])["kind"]
    if spec["defects"]["spoiled"] == "dark":
        second = _annotated(draw, "vizwiz/color", UNANSWERABLE, "black", a=kind)
    else:
        second = _annotated(draw, "vizwiz/beside", UNANSWERABLE, "nothing", a=kind)
    return [_annotated(draw, "vizwiz/what", UNANSWERABLE, "nothing"), second]


def ask(spec: Spec, draw: Draw) -> list[QA]:
    things, spoiled = spec["things"], spec["defects"]["spoiled"]
    qas = _unanswerable(draw, spec) if spoiled else _answerable(draw, things)
    if draw.chance(0.4) or len(qas) < 2:
        qas.append(_ask_absent(draw, things))
    return [*qas, *_dense(draw, things, bool(spoiled))]


def _dense(draw: Draw, things: list[dict], spoiled: bool) -> list[QA]:
    """What there is, without and with boxes."""
    if spoiled:
        return [question(draw, "dense/objects", UNANSWERABLE)]
    names = [f"{t['color']} {t['kind']}" + (f" {t['number']}" if "number" in t else "") for t in things]
    boxes = [box_text(_box(t)) for t in things]
    boxed = " ".join(f"{name} {box}" for name, box in zip(names, boxes, strict=True))
    return [
        question(draw, "dense/objects", " , ".join(names)),
        question(draw, "dense/caption", boxed),
    ]
