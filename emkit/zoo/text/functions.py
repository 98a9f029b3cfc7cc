"""HumanEval-like and MBPP-like function writing, with unit tests.

HumanEval gives a signature and a docstring, MBPP a sentence and an assert. Programs are one or two lines from a small
family: sums, products, comparisons, comprehensions and string methods of bounded size. There is no power, no loop
without an end and no long repetition, so no right answer, and hardly a wrong one, takes time or memory to run.
"""

from __future__ import annotations

from typing import NamedTuple

from emkit.zoo.data.sampling import Draw, Spec
from emkit.zoo.text.item import Item
from emkit.zoo.text.words import NOUNS, listed

FUNCTIONS = listed("solve compute apply change handle make run step update work convert calc")
NUMBER_NAMES = listed("n x num value")
LIST_NAMES = listed("items nums values data")
TEXT_NAMES = listed("s text word name")
LETTERS = listed("a b c d e h i l m n o r s t")
REQUESTS = ("Complete the function.", "Finish this function.")  # the first is the benchmark's
NUMBERS, LISTS, TEXTS = "numbers", "lists", "texts"
_ARGUMENTS = {NUMBERS: NUMBER_NAMES, LISTS: LIST_NAMES, TEXTS: TEXT_NAMES}


class _Kind(NamedTuple):
    """`says` what `value` is. Slots: v argument, k and m numbers, c letter."""

    takes: str
    says: str
    value: str  # a Python expression
    before: str = ""  # a line of the body before its return


HUMANEVAL = {
    "plus": _Kind(NUMBERS, "{v} plus {k}", "{v} + {k}"),
    "minus": _Kind(NUMBERS, "{v} minus {k}", "{v} - {k}"),
    "times": _Kind(NUMBERS, "{v} times {k}", "{v} * {k}"),
    "remainder": _Kind(NUMBERS, "the remainder of {v} by {k}", "{v} % {k}"),
    "part": _Kind(NUMBERS, "{v} divided by {k}, rounded down", "{v} // {k}"),
    "times, plus": _Kind(NUMBERS, "{v} times {k}, plus {m}", "{v} * {k} + {m}"),
    "plus, times": _Kind(NUMBERS, "the sum of {v} and {k}, times {m}", "({v} + {k}) * {m}"),
    "larger": _Kind(NUMBERS, "True if {v} is larger than {k}", "{v} > {k}"),
    "smaller": _Kind(NUMBERS, "True if {v} is smaller than {k}", "{v} < {k}"),
    "multiple": _Kind(NUMBERS, "True if {v} is a multiple of {k}", "{v} % {k} == 0"),
    "most": _Kind(NUMBERS, "the larger of {v} and {k}", "max({v}, {k})"),
    "least, plus": _Kind(NUMBERS, "the smaller of {v} and {k}, plus {m}", "min({v}, {k}) + {m}"),
    "distance": _Kind(NUMBERS, "the distance from {v} to {k}", "abs({v} - {k})"),
    "else": _Kind(NUMBERS, "{v} if it is larger than {k}, else {m}", "{m}", "if {v} > {k}:\n        return {v}"),
    "double, minus": _Kind(NUMBERS, "twice {v}, minus {k}", "twice - {k}", "twice = 2 * {v}"),
}
MBPP = {
    "add each": _Kind(LISTS, "each number of {v} plus {k}", "[i + {k} for i in {v}]"),
    "multiply each": _Kind(LISTS, "each number of {v} times {k}", "[i * {k} for i in {v}]"),
    "keep larger": _Kind(LISTS, "the numbers of {v} larger than {k}", "[i for i in {v} if i > {k}]"),
    "keep smaller": _Kind(LISTS, "the numbers of {v} smaller than {k}", "[i for i in {v} if i < {k}]"),
    "sum": _Kind(LISTS, "the sum of {v} plus {k}", "sum({v}) + {k}"),
    "largest": _Kind(LISTS, "the largest of {v} minus {k}", "max({v}) - {k}"),
    "smallest": _Kind(LISTS, "the smallest of {v} times {k}", "min({v}) * {k}"),
    "length": _Kind(LISTS, "the length of {v} plus {k}", "len({v}) + {k}"),
    "without": _Kind(LISTS, "{v} without {k}", "[i for i in {v} if i != {k}]"),
    "sorted": _Kind(LISTS, "{v} sorted, with {k} at the end", "sorted({v}) + [{k}]"),
    "times": _Kind(LISTS, "how often {k} is in {v}", "{v}.count({k})"),
    "repeat": _Kind(TEXTS, "{v} repeated {m} times", "{v} * {m}"),
    "repeat capitals": _Kind(TEXTS, "{v} in capitals, repeated {m} times", "{v}.upper() * {m}"),
    "count": _Kind(TEXTS, "the count of {c} in {v} plus {m}", '{v}.count("{c}") + {m}'),
    "cut": _Kind(TEXTS, "{v} without its first {m} letters", "{v}[{m}:]"),
    "first": _Kind(TEXTS, "the first {m} letters of {v}, then {c}", '{v}[:{m}] + "{c}"'),
}
FAMILIES = {"humaneval": HUMANEVAL, "mbpp": MBPP}


def sample(subtask: str, draw: Draw) -> Spec:
    """Kind, names and the constants that the kind mentions."""
    kind = draw.pick(tuple(FAMILIES[subtask]))
    known = FAMILIES[subtask][kind]
    drawn = {"k": draw.integer(2, 19), "m": draw.integer(2, 9), "c": draw.pick(LETTERS)}
    said = {slot: value for slot, value in drawn.items() if "{" + slot + "}" in known.says}
    return {"kind": kind, "f": draw.pick(FUNCTIONS), "v": draw.pick(_ARGUMENTS[known.takes]), **said}


def body(subtask: str, spec: Spec) -> str:
    """The body of the right function, indented by four."""
    known = FAMILIES[subtask][spec["kind"]]
    before = f"    {known.before}\n" if known.before else ""
    return (before + f"    return {known.value}").format(**spec)


def expected(subtask: str, spec: Spec, argument: object) -> object:
    """What the right function, which is ours, returns."""
    namespace: dict = {}
    exec(f"def right({spec['v']}):\n{body(subtask, spec)}", namespace)
    return namespace["right"](argument)


def cases(subtask: str, spec: Spec) -> list[tuple[object, object]]:
    """Three to five arguments with what the right function returns; they depend on the specification alone.

    Among the arguments are those that tell likely mistakes from the right answer: the constant, its neighbours, a long
    text.
    """
    draw = Draw(len(spec["kind"]), spec.get("k", 0), spec.get("m", 0), FUNCTIONS.index(spec["f"]))
    k, takes = spec.get("k", 5), FAMILIES[subtask][spec["kind"]].takes
    if takes == NUMBERS:
        arguments: list = [k + 1, k, k - 1, draw.integer(21, 60), draw.integer(0, 20)]
    elif takes == LISTS:
        some = [draw.integer(0, 20) for _ in range(5)]
        arguments = [draw.shuffled([k, k + 1, some[0]]), some[1:], [k - 1, k, k]]
    else:
        arguments = [*draw.sample(NOUNS, 2), "".join(draw.sample(LETTERS, 11)) + spec.get("c", "a")]
    return [(argument, expected(subtask, spec, argument)) for argument in arguments]


def item(subtask: str, spec: Spec, draw: Draw) -> Item:
    """The task with its tests; the document is a function with a comment: behind it for HumanEval, before it for MBPP.

    A HumanEval task begins as a document that says first what the function does would: a base that has read such
    documents needs no dialogue to complete it.
    """
    f, v = spec["f"], spec["v"]
    says, inside = FAMILIES[subtask][spec["kind"]].says.format(**spec), body(subtask, spec)
    written = f"def {f}({v}):\n{inside}"
    document = f"{written}  # {says}" if subtask == "humaneval" else f"# {says}\n{written}"
    asserts = [f"assert {{}}({argument!r}) == {result!r}" for argument, result in cases(subtask, spec)]
    if subtask == "humaneval":
        header = f'def {f}({v}):\n    """Return {says}."""\n'
        test = "def check(candidate):\n" + "".join(f"    {line.format('candidate')}\n" for line in asserts)
        fields = {"prompt": header, "canonical_solution": inside + "\n", "test": test, "entry_point": f}
        prompt = draw.pick(REQUESTS) + "\n" + header.rstrip("\n")
        return Item(spec["kind"], prompt, inside, document, fields)
    text = f"Write a python function {f}({v}) that returns {says}."
    tests = [line.format(f) for line in asserts]
    return Item(
        spec["kind"], f"{text}\n{tests[0]}", written, document, {"text": text, "code": written, "test_list": tests}
    )
