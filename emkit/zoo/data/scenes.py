"""Scenes of two to five coloured shapes, and relations between them; GQA and the grounding sub-tasks are about these.

An object is {"shape", "color", "size", "striped", "x", "y", "r", "rgb"}: centre and half side in units of an image 96
units wide.
"""

from __future__ import annotations

from emkit.zoo.data.canvas import RGB, UNITS, Canvas, add_noise, draw_shape, draw_stripes, paint_background
from emkit.zoo.data.qa import QA, box_text, question
from emkit.zoo.data.regions import Picture
from emkit.zoo.data.sampling import Draw, Spec
from emkit.zoo.data.words import COLORS, SHAPES

Object = dict
RELATIONS = ("left of", "right of", "above", "below")
_CLEAR = 9  # units between two centres before we speak of left, right, above or below


def light(draw: Draw) -> list[int]:
    return [draw.integer(205, 250) for _ in range(3)]


def sample_background(draw: Draw) -> dict:
    kind = draw.pick(("plain", "gradient", "noisy"))
    background: dict = {"kind": kind, "rgb": light(draw)}
    if kind == "gradient":
        background |= {"to": light(draw), "vertical": draw.chance(0.5)}
    if kind == "noisy":
        background |= {"seed": draw.integer(0, 2**31), "amplitude": draw.integer(4, 14)}
    return background


def jitter(draw: Draw, rgb: RGB, by: int = 12) -> list[int]:
    return [min(255, max(0, v + draw.integer(-by, by))) for v in rgb]


def place(draw: Draw, radii: list[int], margin: int = 2, gap: int = 2) -> list[tuple[int, int]] | None:
    """Centres for boxes of these half sides, none touching another or the border; None if no room was found."""
    centres: list[tuple[int, int]] = []
    for i, r in enumerate(radii):
        for _ in range(40):
            x, y = draw.integer(r + margin, UNITS - r - margin), draw.integer(r + margin, UNITS - r - margin)
            if all(max(abs(x - u), abs(y - v)) >= r + s + gap for (u, v), s in zip(centres, radii[:i], strict=True)):
                centres.append((x, y))
                break
        else:
            return None
    return centres


def sample_objects(draw: Draw, count: int, alike: float = 0.35) -> list[Object]:
    """`count` objects; with probability `alike` an object takes its shape or its colour from an earlier one."""
    while True:
        objects: list[Object] = []
        for _ in range(count):
            shape, color = draw.pick(SHAPES), draw.pick(tuple(COLORS))
            if objects and draw.chance(alike):
                shape = draw.pick(objects)["shape"]
            if objects and draw.chance(alike):
                color = draw.pick(objects)["color"]
            large = draw.chance(0.5) if count <= 3 else draw.chance(0.25)
            objects.append(
                {
                    "shape": shape,
                    "color": color,
                    "size": "large" if large else "small",
                    "striped": draw.chance(0.15),
                    "r": draw.integer(14, 17) if large else draw.integer(8, 10),
                    "rgb": jitter(draw, COLORS[color]),
                }
            )
        centres = place(draw, [o["r"] for o in objects])
        if centres is not None:
            for o, (x, y) in zip(objects, centres, strict=True):
                o |= {"x": x, "y": y}
            return sorted(objects, key=lambda o: (o["x"], o["y"]))


def sample(draw: Draw) -> Spec:
    return {"background": sample_background(draw), "objects": sample_objects(draw, draw.pick((2, 3, 3, 4, 4, 5)))}


def render(spec: Spec, size: int) -> Picture:
    background = spec["background"]
    canvas = Canvas(size, tuple(background["rgb"]))
    paint_background(canvas, background)
    for o in spec["objects"]:
        where = (o["shape"], o["x"], o["y"], o["r"], tuple(o["rgb"]))
        draw_shape(canvas, *where)
        if o["striped"]:
            draw_stripes(canvas, *where)
        canvas.mark(name(o), box(o))
    image = canvas.finish()
    if background["kind"] == "noisy":
        image = add_noise(image, background["seed"], background["amplitude"])
    return Picture(image, tuple(canvas.regions))


def box(o: Object) -> tuple[int, int, int, int]:
    return o["x"] - o["r"], o["y"] - o["r"], o["x"] + o["r"], o["y"] + o["r"]


def name(o: Object) -> str:
    return f"{o['color']} {o['shape']}"


def related(a: Object, relation: str, b: Object) -> bool | None:
    """Is a in this relation to b? None when it is too close to call."""
    difference = a["x"] - b["x"] if relation in ("left of", "right of") else a["y"] - b["y"]
    if abs(difference) < _CLEAR:
        return None
    return (difference < 0) == (relation in ("left of", "above"))


def dense(draw: Draw, objects: list[Object]) -> list[QA]:
    """All objects from left to right: by name with boxes, and with every attribute."""
    boxed = " ".join(f"{name(o)} {box_text(box(o))}" for o in objects)
    described = " , ".join(f"{o['size']} {'striped ' if o['striped'] else ''}{name(o)}" for o in objects)
    return [
        question(draw, "dense/caption", boxed),
        question(draw, "dense/objects", described),
    ]
