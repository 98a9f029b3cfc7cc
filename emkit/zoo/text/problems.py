"""GSM8K-like word problems in one or two steps; the worked answer ends in `#### n`, as GSM8K's do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from emkit.zoo.data.sampling import Draw, Spec
from emkit.zoo.text.item import Item
from emkit.zoo.text.words import HER, NAMES, THINGS


@dataclass(frozen=True)
class _Kind:
    """`numbers` draws a, b, c; `steps` says which sums are done, each `(left, sign, right)` by the letters a, b, c
    or by the number of an earlier step. Slots: n, m names, t things, he the pronoun; `story` is past tense."""

    numbers: Callable[[Draw], tuple[int, ...]]
    steps: tuple[tuple, ...]
    questions: tuple[str, ...]
    story: str


def _shared(draw: Draw) -> tuple[int, int]:
    each, friends = draw.integer(2, 9), draw.integer(2, 9)
    return each * friends, friends


def _left(draw: Draw) -> tuple[int, int]:
    a = draw.integer(6, 30)
    return a, draw.integer(2, min(a - 1, 19))


def _gain_and_loss(draw: Draw) -> tuple[int, int, int]:
    a, b = draw.integer(3, 20), draw.integer(3, 15)
    return a, b, draw.integer(2, min(a + b - 1, 15))


def _bags_and_loss(draw: Draw) -> tuple[int, int, int]:
    a, b = draw.integer(2, 9), draw.integer(2, 9)
    return a, b, draw.integer(1, min(a * b - 1, 9))


KINDS = {
    "gain": _Kind(
        lambda draw: (draw.integer(3, 30), draw.integer(3, 20)),
        (("a", "+", "b"),),
        (
            "{n} has {a} {t} and finds {b} more. How many {t} does {n} have now?",
            "{n} has {a} {t}. {m} gives {n} {b} more. How many {t} does {n} have?",
        ),
        "{n} had {a} {t} and found {b} more",
    ),
    "loss": _Kind(
        _left,
        (("a", "-", "b"),),
        (
            "{n} has {a} {t} and gives {b} to {m}. How many {t} are left?",
            "{n} has {a} {t} and loses {b}. How many {t} does {n} have now?",
        ),
        "{n} had {a} {t} and lost {b}",
    ),
    "bags": _Kind(
        lambda draw: (draw.integer(2, 9), draw.integer(2, 9)),
        (("a", "*", "b"),),
        (
            "{n} buys {a} bags with {b} {t} each. How many {t} is that?",
            "There are {a} bags with {b} {t} each. How many {t} does {n} find in them?",
        ),
        "{n} bought {a} bags with {b} {t} each",
    ),
    "share": _Kind(
        _shared,
        (("a", "/", "b"),),
        (
            "{n} shares {a} {t} among {b} friends. How many {t} does each get?",
            "{b} friends share {a} {t} of {n}. How many {t} does each friend get?",
        ),
        "{n} shared {a} {t} among {b} friends",
    ),
    "gain, loss": _Kind(
        _gain_and_loss,
        (("a", "+", "b"), (0, "-", "c")),
        (
            "{n} has {a} {t}, finds {b} more and loses {c}. How many {t} does {n} have now?",
            "{n} has {a} {t}. {m} gives {n} {b} more. {n} loses {c}. How many {t} are left?",
        ),
        "{n} had {a} {t}, found {b} more and lost {c}",
    ),
    "bags, gain": _Kind(
        lambda draw: (draw.integer(2, 9), draw.integer(2, 9), draw.integer(2, 9)),
        (("a", "*", "b"), (0, "+", "c")),
        (
            "{n} buys {a} bags with {b} {t} each and finds {c} more. How many {t} does {n} have?",
            "{n} has {a} bags with {b} {t} each. {m} brings {c} more. How many {t} is that?",
        ),
        "{n} bought {a} bags with {b} {t} each and found {c} more",
    ),
    "bags, loss": _Kind(
        _bags_and_loss,
        (("a", "*", "b"), (0, "-", "c")),
        (
            "{n} buys {a} bags with {b} {t} each and loses {c}. How many {t} are left?",
            "{n} has {a} bags with {b} {t} each and gives {c} to {m}. How many {t} does {n} have now?",
        ),
        "{n} bought {a} bags with {b} {t} each and lost {c}",
    ),
    "more than": _Kind(
        lambda draw: (draw.integer(3, 20), draw.integer(2, 12)),
        (("a", "+", "b"), ("a", "+", 0)),
        (
            "{n} has {a} {t}. {m} has {b} more than {n}. How many {t} do both have?",
            "{n} has {a} {t} and {m} has {b} more. How many {t} do they have together?",
        ),
        "{n} had {a} {t}, {m} had {b} more",
    ),
}
_APPLY = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}


def sample(draw: Draw) -> Spec:
    """Everything that the question says."""
    kind = draw.pick(tuple(KINDS))
    numbers = dict(zip("abc", KINDS[kind].numbers(draw)))
    return {"kind": kind, "n": draw.pick(NAMES), "t": draw.pick(THINGS), **numbers}


def _other(spec: Spec) -> str:
    """The second person: not every wording names one, so it follows from the rest: one specification a problem."""
    return NAMES[(NAMES.index(spec["n"]) + 1 + (spec["a"] + spec["b"]) % (len(NAMES) - 1)) % len(NAMES)]


def item(spec: Spec, draw: Draw) -> Item:
    """The problem with one wording, its worked answer, and the same story told with its sums."""
    kind = KINDS[spec["kind"]]
    steps: list = []
    results: list = []
    for left, sign, right in kind.steps:
        values = [results[term] if isinstance(term, int) else spec[term] for term in (left, right)]
        results.append(_APPLY[sign](*values))
        steps.append(f"{values[0]} {sign} {values[1]} = {results[-1]}")
    worked, answer = ", ".join(steps), str(results[-1])
    he = "she" if spec["n"] in HER else "he"
    slots = spec | {"m": _other(spec)}
    document = f"{kind.story.format(**slots)}, so {he} counted {worked} {spec['t']}."
    question = draw.pick(kind.questions).format(**slots)
    return Item(spec["kind"], question, f"{worked}\n#### {answer}", document, {"answer": answer})
