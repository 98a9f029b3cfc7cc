"""RefCOCO, RefCOCO+ and RefCOCOg: find the box of the object an expression describes.

As in the originals: RefCOCO expressions are short and may use location words, RefCOCO+ ones may not, RefCOCOg ones are
longer and relate the object to others. Every expression describes exactly one object of its scene.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from emkit.zoo.data import scenes
from emkit.zoo.data.qa import QA, box_text, say
from emkit.zoo.data.sampling import Draw, Spec
from emkit.zoo.data.scenes import Object, box, name, related

_EXTREMES = {"left": ("x", 1), "right": ("x", -1), "top": ("y", 1), "bottom": ("y", -1)}
_CLEAR = 9  # units by which an extreme object must lead, as in scenes.related


def _nouns(o: Object) -> tuple[dict, ...]:
    """The ways to name an object, from vague to exact, as attribute dictionaries."""
    return ({}, {"shape": o["shape"]}, {"color": o["color"]}, {"color": o["color"], "shape": o["shape"]})


def _noun_text(noun: dict) -> str:
    """The words of an attribute dictionary, in the order adjectives take."""
    pattern = ("striped" if noun["striped"] else "plain") if "striped" in noun else None
    return " ".join(w for w in (noun.get("size"), pattern, noun.get("color"), noun.get("shape", "object")) if w)


def _matching(objects: list[Object], noun: dict) -> list[Object]:
    return [o for o in objects if all(o[k] == v for k, v in noun.items())]


def _leads(o: Object, rivals: list[Object], direction: str) -> bool:
    axis, sign = _EXTREMES[direction]
    return all(sign * (p[axis] - o[axis]) >= _CLEAR for p in rivals if p is not o)


def _by_location(objects: list[Object]) -> Iterator[tuple[Object, str]]:
    for o in objects:
        for noun in _nouns(o):
            rivals = _matching(objects, noun)
            if len(rivals) < 2:
                continue
            for direction in _EXTREMES:
                if _leads(o, rivals, direction):
                    yield o, f"{direction} {_noun_text(noun)}"
                    yield o, f"{_noun_text(noun)} at the {direction}"
            if len(rivals) == 3 and any(
                _leads(a, rivals, "left") and _leads(b, rivals, "right") and o not in (a, b)
                for a in rivals
                for b in rivals
            ):
                yield o, f"middle {_noun_text(noun)}"


def _by_appearance(objects: list[Object]) -> Iterator[tuple[Object, str]]:
    for o in objects:
        exact = {"color": o["color"], "shape": o["shape"]}
        nouns = [*_nouns(o)[1:], {**exact, "size": o["size"]}, {**exact, "striped": o["striped"]}]
        nouns += [{"size": o["size"], "shape": o["shape"]}, {"size": o["size"], "color": o["color"]}]
        nouns += [{"striped": True, "shape": o["shape"]}] if o["striped"] else []
        for noun in nouns:
            if len(_matching(objects, noun)) == 1:
                yield o, _noun_text(noun)


def _by_relation(objects: list[Object]) -> Iterator[tuple[Object, str]]:
    for anchor in objects:
        anchor_noun = {"color": anchor["color"], "shape": anchor["shape"]}
        if len(_matching(objects, anchor_noun)) != 1:
            continue
        for o in objects:
            if o is anchor:
                continue
            for noun in _nouns(o):
                rivals = [p for p in _matching(objects, noun) if p is not anchor]
                for relation in scenes.RELATIONS:
                    if [related(p, relation, anchor) for p in rivals].count(False) == len(rivals) - 1 and related(
                        o, relation, anchor
                    ):
                        yield o, f"{_noun_text(noun)} that is {relation} the {name(anchor)}"


def sample(expressions, draw: Draw) -> Spec:
    """A scene with at least two expressions; objects look alike more often than elsewhere, so words are needed."""
    while True:
        spec = {
            "background": scenes.sample_background(draw),
            "objects": scenes.sample_objects(draw, draw.pick((2, 3, 3, 4)), alike=0.5),
        }
        if len({id(o) for o, _ in expressions(spec["objects"])}) >= 2:
            return spec


def _name_in_box(draw: Draw, o: Object) -> QA:
    return QA(say(draw, "refer/name", box=box_text(box(o))), name(o), "dense/name")


def ask(expressions, subtask: str, spec: Spec, draw: Draw) -> list[QA]:
    options = list(expressions(spec["objects"]))
    qas: dict[str, QA] = {}
    for _ in range(8):
        target = draw.pick(options)[0] if not qas else draw.pick([o for o, _ in options])
        expression = draw.pick([text for o, text in options if o is target])
        pixels = box(target)
        fields = {"bbox": list(pixels), "expression": expression}
        qas.setdefault(expression, QA(say(draw, "refer", a=expression), box_text(pixels), subtask, fields))
        if len(qas) == 4:
            break
    return [*qas.values(), scenes.dense(draw, spec["objects"])[0], _name_in_box(draw, draw.pick(spec["objects"]))]


EXPRESSIONS = {"refcoco": _by_location, "refcoco+": _by_appearance, "refcocog": _by_relation}
SAMPLERS = {subtask: partial(sample, e) for subtask, e in EXPRESSIONS.items()}
ASKERS = {subtask: partial(ask, e, subtask) for subtask, e in EXPRESSIONS.items()}
