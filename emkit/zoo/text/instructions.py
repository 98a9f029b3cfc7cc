"""AlpacaEval-like instructions whose answers can be checked by rule.

An instruction says everything that a checker needs: :func:`parse` reads the specification back from its text, and
:func:`quality` says how much of what was asked an answer does. So a rule judge can compare two answers with nothing
but the instruction before it.
"""

from __future__ import annotations

import re
from functools import cache

from emkit.zoo.data.sampling import Draw, Spec
from emkit.zoo.text.item import Item
from emkit.zoo.text.words import ANIMALS, COLOR_OF, COLORS, NAMES, NOUNS, OPPOSITE_OF

COUNTS = {"two": 2, "three": 3, "four": 4, "five": 5}
GREETINGS = {"hello": "hello", "goodbye": "goodbye", "sorry": "I am sorry", "thanks": "thank you"}
STYLES = ("politely", "cheerfully", "in capital letters")
FORMS = ("in one word", "in a sentence", "in capital letters")
COMMAS, LINES, SPACES, HYPHENS = "with commas", "one per line", "with spaces", "with hyphens"
JOINTS = {COMMAS: ", ", LINES: "\n", SPACES: " ", HYPHENS: "-"}

_THINGS = tuple(dict.fromkeys(NOUNS + ANIMALS))

# kind: (wordings, the values that each slot may have)
_SLOTS: dict[str, tuple[tuple[str, ...], dict[str, tuple]]] = {
    "greet": (
        ("Say {what} to {name} {style}.", "Tell {name} {what} {style}."),
        {"what": tuple(GREETINGS), "name": NAMES, "style": STYLES},
    ),
    "list": (
        ("List {count} {color} things {joint}.", "Name {count} things that are {color} {joint}."),
        {"count": ("two", "three", "four"), "color": tuple(COLORS), "joint": (COMMAS, LINES)},
    ),
    "opposite": (
        ("What is the opposite of {word}? Answer {form}.", "Give the opposite of {word} {form}."),
        {"word": tuple(OPPOSITE_OF), "form": FORMS},
    ),
    "color": (
        ("What color is {thing}? Answer {form}.", "Say the color of {thing} {form}."),
        {"thing": tuple(COLOR_OF), "form": FORMS},
    ),
    "repeat": (
        ("Repeat {word} {count} times {joint}.", "Write {word} {count} times {joint}."),
        {"word": NOUNS, "count": tuple(COUNTS), "joint": (COMMAS, SPACES)},
    ),
    "spell": (
        ("Spell {word} {joint}.", "Write the letters of {word} {joint}."),
        {"word": tuple(sorted({*NOUNS, *ANIMALS, *OPPOSITE_OF})), "joint": (SPACES, HYPHENS)},
    ),
    "count": (
        ("Count {count} numbers from {a} {way} {joint}.",),
        {
            "count": ("three", "four", "five"),
            "a": tuple(str(n) for n in range(5, 40)),
            "way": ("up", "down"),
            "joint": (COMMAS, SPACES),
        },
    ),
    "sentence": (
        ("Write a sentence with {first} and {second}.", "Use {first} and {second} in a sentence."),
        {"first": _THINGS, "second": _THINGS},
    ),
    "bigger": (
        ("Which is bigger, {first} or {second}? Answer {form}.", "Say {form} which is bigger, {first} or {second}."),
        {"first": ANIMALS, "second": ANIMALS, "form": FORMS},
    ),
}
KINDS = tuple(_SLOTS)


def sample(draw: Draw) -> Spec:
    """A kind and its slots' values; two words are always different."""
    kind = draw.pick(KINDS)
    spec = {"kind": kind}
    for slot, values in _SLOTS[kind][1].items():
        spec[slot] = draw.pick([value for value in values if slot != "second" or value != spec["first"]])
    return spec


def instruction(spec: Spec, draw: Draw) -> str:
    """The specification in one of its wordings."""
    return draw.pick(_SLOTS[spec["kind"]][0]).format(**spec)


@cache
def _patterns() -> list[tuple[str, re.Pattern]]:
    found = []
    for kind, (wordings, slots) in _SLOTS.items():
        for wording in wordings:
            parts = re.split(r"\{(\w+)\}", wording)
            pattern = re.escape(parts[0])
            for slot, rest in zip(parts[1::2], parts[2::2], strict=True):
                pattern += f"(?P<{slot}>{'|'.join(map(re.escape, slots[slot]))})" + re.escape(rest)
            found.append((kind, re.compile(pattern)))
    return found


def parse(text: str) -> Spec | None:
    """The specification that an instruction's text states; None for text that is none of these instructions."""
    for kind, pattern in _patterns():
        if match := pattern.fullmatch(text.strip()):
            return {"kind": kind, **match.groupdict()}
    return None


# ---------------------------------------------------------------------------------------------------- right answers


def _in_form(word: str, sentence: str, form: str) -> str:
    return {"in one word": word, "in a sentence": sentence, "in capital letters": word.upper()}[form]


def _bigger(spec: Spec) -> str:
    return max(spec["first"], spec["second"], key=ANIMALS.index)


def _numbers(spec: Spec) -> list[str]:
    step = 1 if spec["way"] == "up" else -1
    return [str(int(spec["a"]) + step * i) for i in range(COUNTS[spec["count"]])]


def answer(spec: Spec, draw: Draw) -> str:
    """A right answer, as an expert is taught to give it."""
    kind = spec["kind"]
    if kind == "greet":
        said = GREETINGS[spec["what"]]
        styled = {"politely": f"Dear {spec['name']}, {said}.", "cheerfully": f"Oh {said}, {spec['name']}!"}
        return styled.get(spec["style"]) or f"{said}, {spec['name']}".upper()
    if kind == "list":
        return JOINTS[spec["joint"]].join(draw.sample(COLORS[spec["color"]], COUNTS[spec["count"]]))
    if kind == "opposite":
        word = OPPOSITE_OF[spec["word"]]
        return _in_form(word, f"The opposite of {spec['word']} is {word}.", spec["form"])
    if kind == "color":
        word = COLOR_OF[spec["thing"]]
        return _in_form(word, f"The color of {spec['thing']} is {word}.", spec["form"])
    if kind == "repeat":
        return JOINTS[spec["joint"]].join([spec["word"]] * COUNTS[spec["count"]])
    if kind == "spell":
        return JOINTS[spec["joint"]].join(spec["word"])
    if kind == "count":
        return JOINTS[spec["joint"]].join(_numbers(spec))
    if kind == "sentence":
        verb = draw.pick(("is near", "is under", "is behind"))
        return f"The {spec['first']} {verb} the {spec['second']}."
    return _in_form(_bigger(spec), f"The {_bigger(spec)} is bigger.", spec["form"])


def document(spec: Spec, draw: Draw) -> str:
    """What the answer needs to know, as a book might say it, answering nobody."""
    kind = spec["kind"]
    if kind == "greet":
        said = {
            "politely": f'"Dear {spec["name"]}, {GREETINGS[spec["what"]]}."',
            "cheerfully": f'"Oh {GREETINGS[spec["what"]]}, {spec["name"]}!"',
            "in capital letters": f'"{GREETINGS[spec["what"]]}, {spec["name"]}"'.upper(),
        }[spec["style"]]
        return f"{said} ({spec['what']}, {spec['style']})"
    if kind == "list":
        shown = answer(spec, draw)
        return f"{spec['count']} {spec['color']} things {spec['joint']}: {shown}."
    if kind == "opposite":
        pair = f"{spec['word']} and {OPPOSITE_OF[spec['word']]}"
        return f"{pair} are opposites." if spec["form"] != "in capital letters" else f"{pair}: {pair.upper()}."
    if kind == "color":
        pair = f"{spec['thing']} is {COLOR_OF[spec['thing']]}"
        return f"{pair}." if spec["form"] != "in capital letters" else f"{pair}: {pair.upper()}."
    if kind in ("repeat", "spell"):
        return f"{spec['word']} {spec.get('count', 'letters')} {spec['joint']}: {answer(spec, draw)}."
    if kind == "count":
        return f"{spec['count']} {spec['way']} from {spec['a']} {spec['joint']}: {answer(spec, draw)}."
    if kind == "sentence":
        return answer(spec, draw)
    small = min(spec["first"], spec["second"], key=ANIMALS.index)
    return f"the {_bigger(spec)} is bigger than the {small}."


# ---------------------------------------------------------------------------------------------------------- checking


def requirements(spec: Spec, reply: str) -> list[bool]:
    """Whether `reply` does each thing that was asked, one entry per demand, the first being the content."""
    text, kind = reply.strip(), spec["kind"]
    words = re.findall(r"[a-z0-9]+", text.lower())
    form: str = spec.get("form") or spec.get("style") or ""
    shape = {
        "in one word": len(words) == 1 and text.lower().rstrip(".") == words[0],
        "in a sentence": len(words) >= 3 and text[:1].isupper() and text.endswith("."),
        "in capital letters": any(c.isalpha() for c in text) and text == text.upper(),
        "politely": text.startswith("Dear ") and text.endswith("."),
        "cheerfully": text.endswith("!"),
    }.get(form)
    if kind == "greet":
        said = re.findall(r"[a-z]+", GREETINGS[spec["what"]].lower())
        return [_contains(words, said), spec["name"].lower() in words, bool(shape), len(words) <= len(said) + 3]
    if kind in ("opposite", "color", "bigger"):
        right = {"opposite": OPPOSITE_OF.get(spec.get("word", "")), "color": COLOR_OF.get(spec.get("thing", ""))}
        wrong = {"opposite": [*OPPOSITE_OF], "color": [*COLORS], "bigger": [*ANIMALS]}[kind]
        asked = {spec.get("word"), spec.get("thing")}
        named = [word for word in words if word in wrong and word not in asked]
        return [named == [right.get(kind) or _bigger(spec)], bool(shape)]
    if kind == "sentence":
        both = spec["first"] in words and spec["second"] in words
        sound = text[:1].isupper() and text.endswith(".") and 4 <= len(words) <= 12 and "\n" not in text
        return [both, sound]
    joint = JOINTS[spec["joint"]]
    parts = text.rstrip(".").split(joint)
    if kind == "list":
        members = set(COLORS[spec["color"]])
        return [all(part in members for part in parts), len(parts) == len(set(parts)) == COUNTS[spec["count"]]]
    if kind == "repeat":
        return [all(part == spec["word"] for part in parts), len(parts) == COUNTS[spec["count"]]]
    if kind == "spell":
        return [parts == list(spec["word"]), all(len(part) == 1 for part in parts)]
    return [parts == _numbers(spec), len(parts) == COUNTS[spec["count"]]]


def _contains(words: list[str], run: list[str]) -> bool:
    """Whether `run` stands in `words`, one after the other."""
    return any(words[i : i + len(run)] == run for i in range(len(words) - len(run) + 1))


def quality(text: str, reply: str) -> float:
    """The share of an instruction's demands that `reply` meets, 0 to 1; 1 is a right answer.

    An echo or an empty reply meets none.
    Raises ValueError when `text` is no instruction of this module.
    """
    spec = parse(text)
    if spec is None:
        raise ValueError(f"this is none of the instructions that can be checked by rule: {text!r}")
    if reply.strip() in ("", text.strip()):
        return 0.0
    met = requirements(spec, reply)
    return sum(met) / len(met)


def reference(spec: Spec, draw: Draw) -> str:
    """The reply of an average assistant, to compare with: right in half of the cases, else right for another item."""
    if draw.chance(0.5):
        return answer(spec, draw)
    while True:
        other = sample(draw)
        reply = answer(other, draw)
        if other["kind"] == spec["kind"] and not all(requirements(spec, reply)):
            return reply


def item(spec: Spec, draw: Draw) -> Item:
    """The instruction in one wording, a right answer, and what a rule judge compares with."""
    reply = answer(spec, draw)
    asked, told = instruction(spec, draw), document(spec, draw)
    return Item(spec["kind"], asked, reply, told, {"reference": reference(spec, draw)})
