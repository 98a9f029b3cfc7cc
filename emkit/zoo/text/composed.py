"""Documented functions in HumanEval's style, put together of parts: what is kept of a list or a text, what is done with
each piece, what is made of the pieces.

A function has a signature with types, a docstring with two examples and a body, as a loop or a comprehension. There are
some thousands of them; their examples are what the function returns.
"""

from __future__ import annotations

from typing import NamedTuple

from emkit.zoo.data.sampling import Draw, Spec
from emkit.zoo.text.item import Item

REQUEST = "Complete the function."


class _Part(NamedTuple):
    """``says`` what ``code`` does, of one piece ``x`` or of the pieces ``found``; ``k`` is a number."""

    says: str
    code: str


class _World(NamedTuple):
    """Functions of one kind of argument: its type, its names, what pieces are called, and the parts."""

    type: str
    names: tuple[str, ...]
    pieces: str
    keeps: dict[str, _Part]
    makes: dict[str, _Part]
    ends: dict[str, tuple[str, _Part]]  # with the type of what is returned


_KEEP_NUMBERS = {
    "all": _Part("the numbers", ""),
    "even": _Part("the even numbers", "x % 2 == 0"),
    "odd": _Part("the odd numbers", "x % 2 == 1"),
    "positive": _Part("the positive numbers", "x > 0"),
    "negative": _Part("the negative numbers", "x < 0"),
    "larger": _Part("the numbers larger than {k}", "x > {k}"),
    "smaller": _Part("the numbers smaller than {k}", "x < {k}"),
    "multiples": _Part("the multiples of {k}", "x % {k} == 0"),
    "other": _Part("the numbers other than {k}", "x != {k}"),
}
_MAKE_NUMBERS = {
    "itself": _Part("{keep}", "x"),
    "square": _Part("the squares of {keep}", "x * x"),
    "double": _Part("twice {keep}", "2 * x"),
    "absolute": _Part("the absolute values of {keep}", "abs(x)"),
    "added": _Part("{keep}, each increased by {m}", "x + {m}"),
    "negated": _Part("{keep} with the opposite sign", "-x"),
    "digits": _Part("the last digits of {keep}", "abs(x) % 10"),
}
_END_NUMBERS = {
    "list": ("List[int]", _Part("a list of {made}", "found")),
    "sum": ("int", _Part("the sum of {made}", "sum(found)")),
    "count": ("int", _Part("how many different values there are among {made}", "len(set(found))")),
    "largest": ("int", _Part("the largest of {made}, or 0 if there is none", "max(found, default=0)")),
    "smallest": ("int", _Part("the smallest of {made}, or 0 if there is none", "min(found, default=0)")),
    "sorted": ("List[int]", _Part("a sorted list of {made}", "sorted(found)")),
    "reversed": ("List[int]", _Part("a list of {made}, in reverse order", "found[::-1]")),
    "unique": ("List[int]", _Part("a sorted list of {made}, each value once", "sorted(set(found))")),
}
_KEEP_CHARACTERS = {
    "all": _Part("the characters", ""),
    "vowels": _Part("the vowels", "x.lower() in 'aeiou'"),
    "consonants": _Part("the consonants", "x.isalpha() and x.lower() not in 'aeiou'"),
    "upper": _Part("the uppercase letters", "x.isupper()"),
    "lower": _Part("the lowercase letters", "x.islower()"),
    "digits": _Part("the digits", "x.isdigit()"),
    "other": _Part("the characters other than '{c}'", "x != '{c}'"),
    "letters": _Part("the letters", "x.isalpha()"),
}
_MAKE_CHARACTERS = {
    "itself": _Part("{keep}", "x"),
    "capitals": _Part("{keep} in capitals", "x.upper()"),
    "small": _Part("{keep} in lower case", "x.lower()"),
    "doubled": _Part("{keep}, each written twice", "2 * x"),
}
_END_CHARACTERS = {
    "text": ("str", _Part("a string of {made}", "''.join(found)")),
    "count": ("int", _Part("how many different strings there are among {made}", "len(set(found))")),
    "length": ("int", _Part("the number of {keep}", "len(found)")),
    "reversed": ("str", _Part("a string of {made}, in reverse order", "''.join(found[::-1])")),
    "sorted": ("str", _Part("a string of {made}, in sorted order", "''.join(sorted(found))")),
    "dashes": ("str", _Part("a string of {made}, joined by dashes", "'-'.join(found)")),
}
_KEEP_WORDS = {
    "all": _Part("the words", ""),
    "long": _Part("the words of more than {m} letters", "len(x) > {m}"),
    "short": _Part("the words of at most {m} letters", "len(x) <= {m}"),
    "starting": _Part("the words that start with '{c}'", "x.startswith('{c}')"),
    "ending": _Part("the words that end with '{c}'", "x.endswith('{c}')"),
    "with": _Part("the words that contain '{c}'", "'{c}' in x"),
    "palindromes": _Part("the words that read the same backwards", "x == x[::-1]"),
}
_MAKE_WORDS = {
    "itself": _Part("{keep}", "x"),
    "capitals": _Part("{keep} in capitals", "x.upper()"),
    "lengths": _Part("the lengths of {keep}", "len(x)"),
    "backwards": _Part("{keep} written backwards", "x[::-1]"),
    "initials": _Part("the first letters of {keep}", "x[0]"),
}
_END_WORDS = {
    "list": ("list", _Part("a list of {made}", "found")),
    "sorted": ("list", _Part("a sorted list of {made}", "sorted(found)")),
    "first": ("list", _Part("a list of the first {m} of {made}", "found[:{m}]")),
    "count": ("int", _Part("how many different values there are among {made}", "len(set(found))")),
    "reversed": ("list", _Part("a list of {made}, in reverse order", "found[::-1]")),
}
WORLDS = {
    "numbers": _World(
        "List[int]", ("numbers", "nums", "values", "lst"), "numbers", _KEEP_NUMBERS, _MAKE_NUMBERS, _END_NUMBERS
    ),
    "characters": _World(
        "str", ("text", "s", "string"), "characters", _KEEP_CHARACTERS, _MAKE_CHARACTERS, _END_CHARACTERS
    ),
    "words": _World("List[str]", ("words", "names", "items"), "words", _KEEP_WORDS, _MAKE_WORDS, _END_WORDS),
}
_LETTERS = tuple("aeiostrn")
_TEXTS = ("Hello World", "banana split 24", "Python 3", "A quick Brown fox", "noon at Level 9", "Rats live On")
_WORDS = (
    *("noon", "apple", "level", "river", "stone", "radar", "ant", "orange", "tree", "eye", "sand", "moon"),
    *("civic", "nest", "table"),
)
LOOP, COMPREHENSION = "loop", "comprehension"


def sample(draw: Draw) -> Spec:
    """The parts, the names and the numbers that they mention."""
    world = draw.pick(tuple(WORLDS))
    known = WORLDS[world]
    parts = {
        "keep": draw.pick(tuple(known.keeps)),
        "make": draw.pick(tuple(known.makes)),
        "end": draw.pick(tuple(known.ends)),
    }
    drawn = {"k": draw.integer(2, 12), "m": draw.integer(1, 5), "c": draw.pick(_LETTERS)}
    texts = "".join("".join(part) for part in _parts(world, parts))
    said = {slot: value for slot, value in drawn.items() if "{" + slot + "}" in texts}
    form = LOOP if draw.chance(0.6) else COMPREHENSION
    return {"kind": f"{world}, {form}", "world": world, **parts, "v": draw.pick(known.names), **said}


def _parts(world: str, spec: Spec) -> tuple[_Part, _Part, _Part]:
    known = WORLDS[world]
    return known.keeps[spec["keep"]], known.makes[spec["make"]], known.ends[spec["end"]][1]


def name(spec: Spec) -> str:
    """A name that says which parts the function has."""
    shown = [
        spec["end"],
        spec["make"] if spec["make"] != "itself" else "",
        spec["keep"] if spec["keep"] != "all" else "",
    ]
    return "_".join([*(part for part in shown if part), spec["world"]])


def says(spec: Spec) -> str:
    """What the function returns, as its docstring has it."""
    drawn = {slot: spec[slot] for slot in ("k", "m", "c") if slot in spec}
    keep, make, end = _parts(spec["world"], spec)
    kept = keep.says.format(**drawn) + (" of " if spec["world"] == "characters" else " in ") + spec["v"]
    made = make.says.format(keep=kept, **drawn)
    return end.says.format(keep=kept, made=made, **drawn)


def body(spec: Spec) -> str:
    """The body of the function, indented by four."""
    keep, make, end = (part.code.format(**spec) for part in _parts(spec["world"], spec))
    v = spec["v"]
    if spec["kind"].endswith(LOOP):
        inner = f"found.append({make})"
        step = f"        if {keep}:\n            {inner}" if keep else f"        {inner}"
        return f"    found = []\n    for x in {v}:\n{step}\n    return {end}"
    made = f"[{make} for x in {v}{f' if {keep}' if keep else ''}]"
    if made == f"[x for x in {v}]":
        made = f"list({v})"
    return f"    found = {made}\n    return {end}"


def right(spec: Spec, argument: object) -> object:
    """What the function, which is ours, returns."""
    namespace: dict = {}
    exec(f"def f({spec['v']}):\n{body(spec)}", namespace)
    return namespace["f"](argument)


def arguments(spec: Spec) -> list:
    """Four arguments, the first two of which are the docstring's examples; they depend on the specification alone."""
    draw = Draw(len(spec["kind"]), spec.get("k", 0), spec.get("m", 0), len(name(spec)))
    k = spec.get("k", 4)
    if spec["world"] == "numbers":
        some = [[draw.integer(-9, 20) for _ in range(draw.integer(4, 6))] for _ in range(3)]
        return [[*some[0], k], [*some[1], k + 1, -k], some[2], []]
    if spec["world"] == "characters":
        return [*draw.sample(_TEXTS, 3), ""]
    return [*(draw.sample(_WORDS, draw.integer(3, 5)) for _ in range(3)), []]


def header(spec: Spec) -> str:
    """Signature and docstring, as HumanEval's prompts have them."""
    known = WORLDS[spec["world"]]
    returns = known.ends[spec["end"]][0]
    imports = "from typing import List\n\n\n" if "List" in known.type + returns else ""
    f = name(spec)
    examples = "".join(f"    >>> {f}({a!r})\n    {right(spec, a)!r}\n" for a in arguments(spec)[:2])
    text = f'    """ Return {says(spec)}.\n{examples}    """\n'
    return f"{imports}def {f}({spec['v']}: {known.type}) -> {returns}:\n{text}"


def item(spec: Spec, draw: Draw) -> Item:
    """The task with its tests; the document is the whole function."""
    head, inside, f = header(spec), body(spec), name(spec)
    asserts = "".join(f"    assert candidate({a!r}) == {right(spec, a)!r}\n" for a in arguments(spec))
    fields = {
        "prompt": head,
        "canonical_solution": inside + "\n",
        "test": f"def check(candidate):\n{asserts}",
        "entry_point": f,
    }
    prompt = f"{REQUEST}\n{head.strip()}"
    return Item(spec["kind"], prompt, inside, head + inside, fields)
