r"""MATH-like symbolic problems: an equation, a product, a derivative ...; the answer stands in `\boxed{}`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from emkit.zoo.data.sampling import Draw, Spec
from emkit.zoo.text.item import Item


@dataclass(frozen=True)
class _Kind:
    """`numbers` draws what the problem says and what follows; `task` and `tasks` are the problem, `work` solves it."""

    numbers: Callable[[Draw], dict[str, int]]
    task: str  # the object of the problem
    tasks: tuple[str, ...]  # how it is asked, with the slot {task}
    work: str
    answer: str


def _plus(draw: Draw) -> dict[str, int]:
    a, r = draw.integer(2, 30), draw.integer(2, 20)
    return {"a": a, "b": a + r, "r": r}


def _times(draw: Draw) -> dict[str, int]:
    a, r = draw.integer(2, 12), draw.integer(2, 12)
    return {"a": a, "b": a * r, "r": r}


def _linear(draw: Draw) -> dict[str, int]:
    a, r, b = draw.integer(2, 9), draw.integer(2, 9), draw.integer(1, 15)
    return {"a": a, "b": b, "c": a * r + b, "d": a * r, "r": r}


def _product(draw: Draw) -> dict[str, int]:
    a, b, c = draw.integer(2, 9), draw.integer(1, 6), draw.integer(1, 6)
    return {"a": a, "b": b, "c": c, "s": b + c, "r": a * (b + c)}


def _remainder(draw: Draw) -> dict[str, int]:
    b, q = draw.integer(2, 9), draw.integer(1, 9)
    r = draw.integer(0, b - 1)
    return {"a": b * q + r, "b": b, "p": b * q, "r": r}


def _square(draw: Draw) -> dict[str, int]:
    a, b = draw.integer(2, 12), draw.integer(1, 20)
    return {"a": a, "b": b, "s": a * a, "r": a * a + b}


def _collect(draw: Draw) -> dict[str, int]:
    a, b = draw.integer(2, 25), draw.integer(2, 15)
    return {"a": a, "b": b, "r": a + b}


def _derivative(draw: Draw) -> dict[str, int]:
    a, n = draw.integer(2, 12), draw.integer(3, 9)
    return {"a": a, "n": n, "r": a * n, "m": n - 1}


def _expand(draw: Draw) -> dict[str, int]:
    a, b = draw.integer(1, 9), draw.integer(1, 9)
    return {"a": a, "b": b, "s": a + b, "p": a * b}


def _next(draw: Draw) -> dict[str, int]:
    a, d = draw.integer(1, 40), draw.integer(2, 12)
    return {"a": a, "b": a + d, "c": a + 2 * d, "d": d, "r": a + 3 * d}


_SOLVE = ("Solve {task}.", "Find x if {task}.")
_COMPUTE = ("Compute {task}.", "What is {task}?")
KINDS = {
    "plus": _Kind(_plus, "x + {a} = {b}", _SOLVE, "x = {b} - {a} = {r}", "{r}"),
    "times": _Kind(_times, "{a}x = {b}", _SOLVE, "x = {b} / {a} = {r}", "{r}"),
    "linear": _Kind(_linear, "{a}x + {b} = {c}", _SOLVE, "{c} - {b} = {d}, x = {d} / {a} = {r}", "{r}"),
    "product": _Kind(_product, "{a} * ({b} + {c})", _COMPUTE, "{a} * {s} = {r}", "{r}"),
    "remainder": _Kind(
        _remainder,
        "the remainder of {a} divided by {b}",
        ("Find {task}.", "What is {task}?"),
        "{a} - {p} = {r}",
        "{r}",
    ),
    "square": _Kind(_square, "{a}^2 + {b}", _COMPUTE, "{s} + {b} = {r}", "{r}"),
    "collect": _Kind(_collect, "{a}x + {b}x", ("Simplify {task}.", "Write {task} shorter."), "{r}x", "{r}x"),
    "derivative": _Kind(
        _derivative,
        "the derivative of {a}x^{n}",
        ("Find {task}.", "What is {task}?"),
        "{a} * {n} = {r}",
        "{r}x^{m}",
    ),
    "expand": _Kind(
        _expand,
        "(x + {a})(x + {b})",
        ("Expand {task}.", "Write {task} as a sum."),
        "{a} + {b} = {s}, {a} * {b} = {p}",
        "x^2 + {s}x + {p}",
    ),
    "next": _Kind(
        _next,
        "the term after {a}, {b}, {c}",
        ("Find {task}.", "What is {task}?"),
        "{c} + {d} = {r}",
        "{r}",
    ),
}


def sample(draw: Draw) -> Spec:
    """The kind and all its numbers; those that the problem does not say follow from those it does."""
    kind = draw.pick(tuple(KINDS))
    return {"kind": kind, **KINDS[kind].numbers(draw)}


def item(spec: Spec, draw: Draw) -> Item:
    """The problem with one wording, its solution, and the same as a line of a book."""
    kind = KINDS[spec["kind"]]
    task, work, answer = (text.format(**spec) for text in (kind.task, kind.work, kind.answer))
    question = draw.pick(kind.tasks).format(task=task)
    document = f"{task}: {work}" + ("." if work.endswith(answer) else f", so {answer}.")
    return Item(spec["kind"], question, f"{work}. \\boxed{{{answer}}}", document, {"answer": answer})
