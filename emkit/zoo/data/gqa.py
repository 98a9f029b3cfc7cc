"""GQA: compositional questions on a scene (existence, attributes, relations, counts), short answers."""

from __future__ import annotations

from emkit.zoo.data import scenes
from emkit.zoo.data.qa import QA, question
from emkit.zoo.data.sampling import Draw, Spec
from emkit.zoo.data.scenes import Object, name, related, render, sample
from emkit.zoo.data.words import COLORS, PLURALS, SHAPES

__all__ = ["ask", "render", "sample"]


def _only(objects: list[Object], **attributes: str) -> Object | None:
    """The one object with these attributes, or None if there is none or more than one."""
    found = [o for o in objects if all(o[k] == v for k, v in attributes.items())]
    return found[0] if len(found) == 1 else None


def _unique_shape(draw: Draw, objects: list[Object]) -> Object | None:
    found = [o for o in objects if _only(objects, shape=o["shape"])]
    return draw.pick(found) if found else None


def _exist(draw: Draw, objects: list[Object]) -> QA:
    o = draw.pick(objects)
    wanted = name(o)
    if draw.chance(0.5):
        shape, color = (draw.pick(SHAPES), o["color"]) if draw.chance(0.5) else (o["shape"], draw.pick(tuple(COLORS)))
        wanted = f"{color} {shape}"
    answer = "yes" if any(name(p) == wanted for p in objects) else "no"
    return question(draw, "gqa/exist", answer, a=wanted)


def _color(draw: Draw, objects: list[Object]) -> QA | None:
    o = _unique_shape(draw, objects)
    return None if o is None else question(draw, "gqa/color", o["color"], a=o["shape"])


def _shape(draw: Draw, objects: list[Object]) -> QA | None:
    found = [o for o in objects if _only(objects, color=o["color"])]
    if not found:
        return None
    o = draw.pick(found)
    return question(draw, "gqa/shape", o["shape"], a=o["color"])


def _by_relation(draw: Draw, objects: list[Object]) -> QA | None:
    """The colour or shape of the only object that stands in a relation to a uniquely named one."""
    options = []
    for anchor in objects:
        if not _only(objects, shape=anchor["shape"]):
            continue
        for relation in scenes.RELATIONS:
            verdicts = [related(o, relation, anchor) for o in objects if o is not anchor]
            if verdicts.count(True) == 1 and None not in verdicts:
                options.append((anchor, relation))
    if not options:
        return None
    anchor, relation = draw.pick(options)
    target = next(o for o in objects if o is not anchor and related(o, relation, anchor))
    attribute = draw.pick(("color", "color", "shape"))
    return question(draw, f"gqa/{attribute}-relation", target[attribute], rel=relation, a=anchor["shape"])


def _relation(draw: Draw, objects: list[Object]) -> QA | None:
    pairs = [(a, b) for a in objects for b in objects if a is not b and name(a) != name(b)]
    pairs = [
        (a, b)
        for a, b in pairs
        if _only(objects, shape=a["shape"], color=a["color"]) and _only(objects, shape=b["shape"], color=b["color"])
    ]
    options = [(a, b, r) for a, b in pairs for r in scenes.RELATIONS if related(a, r, b) is not None]
    if not options:
        return None
    a, b, relation = draw.pick(options)
    answer = "yes" if related(a, relation, b) else "no"
    return question(draw, "gqa/relation", answer, a=name(a), rel=relation, b=name(b))


def _count(draw: Draw, objects: list[Object]) -> QA:
    how = draw.pick(("color", "shape", "shape", "all"))
    if how == "all":
        return question(draw, "gqa/count", len(objects), a="objects")
    value = draw.pick(objects)[how] if draw.chance(0.85) else draw.pick(tuple(COLORS) if how == "color" else SHAPES)
    number, counted = sum(o[how] == value for o in objects), PLURALS[value] if how == "shape" else f"{value} objects"
    return question(draw, "gqa/count", number, a=counted)


def _same_color(draw: Draw, objects: list[Object]) -> QA | None:
    found = [o for o in objects if _only(objects, shape=o["shape"])]
    if len(found) < 2:
        return None
    pairs = [(a, b) for a in found for b in found if a is not b]
    same = [p for p in pairs if p[0]["color"] == p[1]["color"]]
    a, b = draw.pick(same if same and draw.chance(0.7) else pairs)
    answer = "yes" if a["color"] == b["color"] else "no"
    return question(draw, "gqa/same-color", answer, a=a["shape"], b=b["shape"])


def _size(draw: Draw, objects: list[Object]) -> QA | None:
    o = _unique_shape(draw, objects)
    return None if o is None else question(draw, "gqa/size", o["size"], a=o["shape"])


_KINDS = (_exist, _color, _shape, _by_relation, _by_relation, _relation, _relation, _count, _count, _same_color, _size)


def ask(spec: Spec, draw: Draw) -> list[QA]:
    asked = [kind(draw, spec["objects"]) for kind in draw.shuffled(_KINDS)]
    unique = {qa.question: qa for qa in asked if qa is not None}
    return list(unique.values())[:4] + scenes.dense(draw, spec["objects"])
