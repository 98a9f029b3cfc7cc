"""The answers in replies as MergeLM reads them: the evaluation of DARE's authors, whose set of benchmarks Table 3 has.

Its prompts stand in the columns, under ``protocols: mergelm``. Rules are those of its program for instructions,
mathematics and code at commit 0dbd199; the verdict over a program is the sandbox's, that over a formula MATH's here.
"""

from __future__ import annotations

import re
from fractions import Fraction

from eval.lm.answers import same_answer
from eval.workers.text import whole

STATED = "The answer is: "
_NUMBER = re.compile(r"[-+]?\d*[.,/]?\d+")
_MAIN, _EXAMPLE, _TESTS = 'if __name__ == "__main__":', "# Example usage", "# Test examples"


def stated_number(references: list[str], predictions: list[str]) -> float:
    """GSM8K: 1 when the first number after the last "The answer is: ", rounded, is the reference's."""
    found = _number(predictions[0])
    return float(found is not None and found == round(Fraction(references[0].replace(",", "").strip())))


def _number(reply: str) -> int | None:
    _, said, rest = reply.rpartition(STATED)
    match = _NUMBER.search(rest) if said else None
    if match is None:
        return None
    text = match[0].replace(",", "")
    try:
        return round(Fraction(text))
    except (ValueError, ZeroDivisionError):  # "/7"; of "6/0" it takes the 6
        return int(text.partition("/")[0]) if text.endswith("/0") else None


def stated_formula(references: list[str], predictions: list[str]) -> float:
    """MATH: 1 when what stands after the last "The answer is: ", up to the end of its sentence, is the reference's."""
    _, said, rest = predictions[0].rpartition(STATED)
    given = rest.partition(".\n")[0].strip().removesuffix(".").strip()
    return float(bool(said) and same_answer(given, references[0]))


def completed_programs(resps: list[list[str]], docs: list[dict]) -> list[str]:
    """HumanEval: the prompt, and the code in the reply after it."""
    return [doc["prompt"] + code(whole(reply), "```") for (reply,), doc in zip(resps, docs, strict=True)]


def written_programs(resps: list[list[str]], docs: list[dict]) -> list[str]:
    """MBPP: the code in the reply."""
    return [code(whole(reply), "\n```", _TESTS) for (reply,) in resps]


def code(reply: str, fence: str, *more: str) -> str:
    """The code in a reply, or in what its last "### Response:" begins: what the first fence of Python holds, up to the
    next ``fence``, without what is there to try it; ``more``: further words that begin such a part."""
    text = reply.rpartition("### Response:")[2].replace("\t", "    ").replace("\r", "").strip()
    _, opened, inside = text.partition("```python")
    if opened:
        text = inside.replace("```python", "").partition(fence)[0].strip()
    for mark in (_MAIN, _EXAMPLE, *more):
        before, found, _ = text.partition(mark)
        text = before.strip() if found else text
    for mark in ("The solution is:", "The answer is:"):  # how models trained on Code Alpaca say it
        _, found, after = text.partition(mark)
        if found:
            text = after.replace(mark, "").partition("\n\nThe answer is:")[0].strip()
    return text + "\n"
