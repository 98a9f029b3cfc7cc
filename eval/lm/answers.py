r"""Are two answers of MATH the same?  By text after the usual normalisation, by number, by part; nothing is evaluated.

The normalisation is Minerva's as far as an answer in a box needs it: spaces, `$`, `\left`, `\text{}`, units, degrees,
per cent, a dot at the end, what stands before `=`. Formulas in a few letters are the same when they have the same
values at three points.
"""

from __future__ import annotations

import re

from eval.vlm.equality import NotANumber, is_equal, latex_number

_UNITS = "square|units?|dollars?|cents?|mph|inch(?:es)?|ft|feet|km|cm|mm|gm|kg|meters?|metres?|hours?|minutes?|degrees?"
_GONE = re.compile(r"\\left(?![a-z])|\\right(?![a-z])|\\[,!;: ]|\\?%|\\?\$|\^\s*(?:\\circ|\{\s*\\circ\s*\})|°")
_TEXT = re.compile(r"\\(?:text|mbox|mathrm|textbf|mathbf)\s*\{([^{}]*)\}")
_UNIT = re.compile(rf"(?<=[\d}})])\s*(?:{_UNITS}|m|s)(?:\^\{{?[23]\}}?)?\s*$")
_GROUPS = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:,|\{,\})\d{3})+(?![\d,])")
_LETTERS = re.compile(r"(?<![A-Za-z\\])[abckmnxyz]{1,3}(?![A-Za-z\d])")
_POINTS = ((1.37, 0.29), (2.11, 0.53), (0.61, 0.83))  # a letter's value: the first and so many times the second
_PAIRS = {"(": ")", "[": "]", r"\{": r"\}"}


def same_answer(given: str, reference: str) -> bool:
    """Whether two answers are the same, as MATH's graders have it."""
    given, reference = _normal(given), _normal(reference)
    if _tight(given) == _tight(reference):
        return bool(given)
    ours, theirs = _parts(given), _parts(reference)
    if len(ours[1]) > 1 or len(theirs[1]) > 1:
        if ours[0] != theirs[0] or len(ours[1]) != len(theirs[1]):
            return False
        return _pairwise(*(ours[1], theirs[1]), any_order=ours[0] in ("", r"\{"))
    return is_equal(given, reference) or _same_formula(given, reference)


def _normal(text: str) -> str:
    text = re.sub("[−–]", "-", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", _GONE.sub("", text))
    text = _TEXT.sub(r"\1", text).strip().rstrip(".").strip()
    text = re.sub(r"^[A-Za-z]\s*(?:=|\\in(?![a-z]))\s*", "", text)
    text = _UNIT.sub("", text)
    return _GROUPS.sub(lambda found: re.sub(r"[{},]", "", found[0]), text)


def _tight(text: str) -> str:
    """Without spaces and braces around one character."""
    return re.sub(r"(?<![A-Za-z])\{(\w)\}", r"\1", re.sub(r"\s", "", text))


def _parts(text: str) -> tuple[str, list[str]]:
    """The opening bracket of a tuple, interval or set ("": none) and its parts; commas inside brackets part nothing."""
    opening = next((left for left, right in _PAIRS.items() if text.startswith(left) and text.endswith(right)), "")
    inner = text[len(opening) : len(text) - len(opening)]
    parts, depth = [""], 0
    for character in inner:
        depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(character, 0)
        if depth < 0:
            return "", [text]
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return opening if len(parts) > 1 or opening == r"\{" else "", [part.strip() for part in parts]


def _pairwise(ours: list[str], theirs: list[str], any_order: bool) -> bool:
    if not any_order:
        return all(same_answer(one, other) for one, other in zip(ours, theirs, strict=True))
    left = list(theirs)
    for one in ours:
        found = next((at for at, other in enumerate(left) if same_answer(one, other)), None)
        if found is None:
            return False
        left.pop(found)
    return True


def _same_formula(given: str, reference: str) -> bool:
    letters = sorted(set("".join(_LETTERS.findall(given + " " + reference))))
    if not letters:
        return False
    for first, step in _POINTS:
        values = {letter: f"({first + step * at:.2f})" for at, letter in enumerate(letters)}
        try:
            ours, theirs = (latex_number(_filled(text, values)) for text in (given, reference))
            if abs(ours - theirs) > 1e-9 * max(1.0, abs(theirs)):
                return False
        except (NotANumber, ArithmeticError, ValueError, TypeError, RecursionError):
            return False
    return True


def _filled(text: str, values: dict[str, str]) -> str:
    return _LETTERS.sub(lambda found: "".join(values[letter] for letter in found[0]), text)
