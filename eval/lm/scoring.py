"""Metrics and filters that columns name by `!function`. Nothing here runs what a model wrote.

lm-evaluation-harness calls a metric with one reference and one prediction, `process_results` with one item and its
filtered reply, and a filter with the replies of all items of a task. Programs are handed to :mod:`eval.lm.execution`,
which runs nothing itself either.
"""

from __future__ import annotations

import re

from eval.lm import execution, programs
from eval.lm.answers import same_answer
from eval.workers.text import whole

# As the filter `strict-match` and the metric of lm-evaluation-harness's own gsm8k.yaml have them.
_STRICT = re.compile(r"#### (\-?[0-9\.\,]+)")
_IGNORED = (r",", r"\$", r"(?s).*#### ", r"\.$")
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")


def _bare(text: str) -> str:
    """What is left of an answer of GSM8K without what the harness's metric ignores."""
    for ignored in _IGNORED:
        text = re.sub(ignored, "", text)
    return text.lower()


def final_number(references: list[str], predictions: list[str]) -> float:
    """GSM8K's strict match: 1 when the number behind the first `#### ` is the reference's, as the harness has it."""
    found = _STRICT.search(predictions[0])
    return float(found is not None and _bare(found[1]) == _bare(references[0]))


def box_of(text: str) -> str | None:
    r"""What stands in the last `\boxed{...}` or `\fbox{...}`, braces balanced, or behind `\boxed `.

    None where there is no box or it does not end.
    """
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    begin = boxes[-1].end()
    if text[begin : begin + 1] != "{":
        bare = re.match(r"[^\s$]+", text[begin:])
        return bare[0] if bare else None
    depth = 0
    for at in range(begin, len(text)):
        if text[at - 1] != "\\":
            depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[begin + 1 : at]
    return None


def boxed_answer(references: list[str], predictions: list[str]) -> float:
    r"""MATH's match: 1 when the last box holds the reference's answer, in whatever of the usual forms."""
    given = box_of(predictions[0])
    return float(given is not None and same_answer(given, references[0]))


def solution_answer(doc: dict) -> str:
    """MATH: the reference's answer, which stands in the last box of its solution."""
    return box_of(doc["solution"]) or ""


def completed_programs(resps: list[list[str]], docs: list[dict]) -> list[str]:
    """HumanEval: the prompt's function, which the reply gives whole or as its body (:mod:`.programs`)."""
    return [_completed(whole(reply), doc) for (reply,), doc in zip(resps, docs, strict=True)]


def _completed(reply: str, doc: dict) -> str:
    found = programs.completed(doc["prompt"], reply, doc.get("entry_point"))
    return found if found is not None else doc["prompt"] + "    " + programs.last(reply).strip() + "\n"


def written_programs(resps: list[list[str]], docs: list[dict]) -> list[str]:
    """MBPP: the program in the reply that defines what the asserts call (:mod:`.programs`)."""
    return [_written(whole(reply), doc) for (reply,), doc in zip(resps, docs, strict=True)]


def _written(reply: str, doc: dict) -> str:
    found = programs.whole(reply, programs.called(doc.get("test_list", [])))
    return found if found is not None else programs.last(reply).strip() + "\n"


def continued_programs(resps: list[list[str]], docs: list[dict]) -> list[str]:
    """The prompt and what the model went on with, as the harness's own `humaneval` puts them together."""
    return [doc["prompt"] + whole(reply) for (reply,), doc in zip(resps, docs, strict=True)]


def replied_programs(resps: list[list[str]], docs: list[dict]) -> list[str]:
    """The reply as it is, as the harness's own `mbpp` takes it."""
    return [whole(reply) for (reply,) in resps]


def completion_passes(doc: dict, results: list[str]) -> dict[str, float]:
    """HumanEval: 1 when the program passes `check`, which may use what the prompt defines, never what a reply makes of
    it."""
    tests = f"{doc['test']}\ncheck({doc['entry_point']})"
    return {"pass_at_1": float(execution.passes(results[0], tests, doc["prompt"], [doc["entry_point"]]))}


def program_passes(doc: dict, results: list[str]) -> dict[str, float]:
    """MBPP: 1 when the program passes the asserts."""
    return {"pass_at_1": float(execution.passes(results[0], "\n".join(doc["test_list"])))}
