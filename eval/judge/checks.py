"""What an instruction demands of the form of its answer, as checks that anybody can verify by hand.

``grade(instruction, first, second)`` is the rule judge's opinion of two answers: each gets the share of the
instruction's demands that it meets, and the probability that the first is better is 1/2 plus half the difference. It
does not depend on which answer stands first, on their length, or on anything but the two texts. Where an instruction
makes no demand that is known here, every answer but an empty one is equally good.

A demand is a pattern in the instruction and a function: ``@demand(pattern)`` registers ``f(match, answer) -> bool``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

_NEAR_CERTAIN = 0.99  # a judge's probabilities are never 0 or 1, and their logarithms stay finite
_DEMANDS: list[tuple[re.Pattern, Callable[[re.Match, str], bool]]] = []
_NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_N = rf"(\d+|{'|'.join(_NUMBERS)}|a single|an?)"
_QUOTED = r"[\"'“‘]([^\"'”’]+)[\"'”’]"


def demand(pattern: str) -> Callable:
    """Register a check of what ``pattern`` (any case) finds in an instruction; all that it finds must be met."""

    def register(function: Callable[[re.Match, str], bool]):
        _DEMANDS.append((re.compile(pattern, re.IGNORECASE), function))
        return function

    return register


def grade(instruction: str, first: str, second: str) -> float:
    """Probability, in [0.01, 0.99], that ``first`` answers ``instruction`` better than ``second``."""
    difference = met(instruction, first) - met(instruction, second)
    return 0.5 + (_NEAR_CERTAIN - 0.5) * difference


def met(instruction: str, answer: str) -> float:
    """Share of the instruction's demands that ``answer`` meets, in [0, 1]; saying something at all is one of them.

    The miniature benchmark's own instructions state demands that are known in full, content included:
    :func:`emkit.zoo.text.instructions.quality` says how many of them are met.
    """
    from emkit.zoo.text import instructions  # here, for it imports all that draws pictures

    answer = answer.strip()
    if not answer:
        return 0.0
    if instructions.parse(instruction) is not None:
        return instructions.quality(instruction, answer)
    results = [True]
    for pattern, function in _DEMANDS:
        results += [function(match, answer) for match in pattern.finditer(instruction)]
    return sum(results) / len(results)


def _number(text: str) -> int:
    text = text.lower()
    if text in _NUMBERS:
        return _NUMBERS.index(text)
    return int(text) if text.isdecimal() else 1  # "a", "an", "a single"


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text)


def items(answer: str) -> list[str]:
    """The parts of a listing: its lines if it has several, else what commas, semicolons and a last "and" separate."""
    lines = [line for line in answer.splitlines() if line.strip()]
    if len(lines) == 1:
        lines = re.split(r"\s*[,;]\s*(?:and\s+)?|\s+and\s+", lines[0].rstrip("."))
    parts = [re.sub(r"^\s*(?:[-*•]|\d+[.)])\s*", "", part).strip() for part in lines]
    return [part for part in parts if part]


def _sentences(text: str) -> int:
    return len([part for part in re.split(r"(?<=[.!?])\s+", text.strip()) if _words(part)])


# ---------------------------------------------------------------------------------------------- the demands
@demand(r"\b(?:in|use|using|only)\s+(?:all\s+|only\s+)?(?:capitals?|upper[- ]?case)\b(?:\s+letters)?")
def _capitals(match, answer):
    return answer == answer.upper() != answer.lower()


@demand(r"\b(?:in|use|using|only)\s+(?:all\s+|only\s+)?(?:lower[- ]?case|small letters)\b")
def _lower_case(match, answer):
    return answer == answer.lower() != answer.upper()


@demand(rf"\b(?:list|name|give|write|mention|tell(?: me)?)\s+(?:exactly\s+|me\s+)?{_N}\s+(?!words?\b|sentences?\b)\w+")
def _listing(match, answer):
    wanted = match.group(1).lower()
    if wanted in ("a", "an"):  # "give an example", "write a poem": no list
        return True
    return len({part.lower() for part in items(answer)}) == _number(wanted) == len(items(answer))


@demand(
    rf"\b(at most|no more than|up to|fewer than|less than|at least|more than|exactly|in|with|using)\s+{_N}\s+words?\b"
)
def _word_count(match, answer):
    bound, wanted, found = match.group(1).lower(), _number(match.group(2)), len(_words(answer))
    if bound in ("at most", "no more than", "up to"):
        return found <= wanted
    if bound in ("fewer than", "less than"):
        return found < wanted
    if bound == "at least":
        return found >= wanted
    return found > wanted if bound == "more than" else found == wanted


@demand(rf"\b(?:in|with|using|write|exactly)\s+{_N}\s+sentences?\b")
def _sentence_count(match, answer):
    return _sentences(answer) == _number(match.group(1))


@demand(
    rf"\b(?:start|begin)\w*\s+(?:your\s+answer\s+|the\s+answer\s+)?with\s+(?:the\s+(?:word|letter|words)\s+)?{_QUOTED}"
)
def _start(match, answer):
    return answer.lower().startswith(match.group(1).lower())


@demand(
    rf"\b(?:end|finish)\w*\s+(?:your\s+answer\s+|the\s+answer\s+)?with\s+(?:the\s+(?:word|letter|words)\s+)?{_QUOTED}"
)
def _end(match, answer):
    wanted = match.group(1).lower()
    return answer.lower().endswith(wanted) or answer.lower().rstrip(".!?").endswith(wanted)


@demand(
    rf"\b(?:without|(?:do not|don't|never|avoid)(?:\s+us(?:e|ing))?)\s+(?:using\s+)?the\s+(word|letter)\s+{_QUOTED}"
)
def _without(match, answer):
    kind, banned = match.group(1).lower(), match.group(2).lower()
    if kind == "letter":
        return banned not in answer.lower()
    return banned not in [word.lower() for word in _words(answer)]


@demand(rf"(?<!not )(?<!don't )(?<!never )\b(?:include|use|mention|contain)\w*\s+the\s+words?\s+{_QUOTED}")
def _with(match, answer):
    return re.search(rf"\b{re.escape(match.group(1))}\b", answer, re.IGNORECASE) is not None


@demand(r"\b(?:as|in|with|valid)\s+(?:a\s+|valid\s+)*json\b")
def _json(match, answer):
    try:
        return isinstance(json.loads(answer), (dict, list))
    except (ValueError, RecursionError):
        return False


@demand(r"\bseparated\s+by\s+(commas?|semicolons?)\b")
def _separated(match, answer):
    return ("," if match.group(1).lower().startswith("comma") else ";") in answer and "\n" not in answer


@demand(r"\b(?:in|with|using|only|as)\s+(?:digits|a number|numbers|numerals)(?:\s+only)?\b")
def _digits(match, answer):
    return re.fullmatch(r"[\d\s.,;+-]*\d[\d\s.,;+-]*", answer) is not None


@demand(r"\bin\s+alphabetical\s+order\b")
def _alphabetical(match, answer):
    parts = [part.lower() for part in items(answer)]
    return len(parts) > 1 and parts == sorted(parts)


@demand(r"\b(?:as|in)\s+(?:a\s+)?(?:bullet(?:ed)?\s+(?:list|points)|bullets)\b")
def _bullets(match, answer):
    lines = [line for line in answer.splitlines() if line.strip()]
    return all(re.match(r"\s*[-*•]\s+\S", line) for line in lines)


@demand(r"\b(?:as|with|ask)\s+a\s+question\b")
def _question(match, answer):
    return answer.endswith("?")
