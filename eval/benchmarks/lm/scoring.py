"""Metrics and filters that the task files name by `!function`. Nothing here runs what a model wrote.

lm-evaluation-harness calls a metric with one reference and one prediction, `process_results` with one item and its
filtered reply, and a filter with the replies of all items of a task. Programs are handed to :mod:`eval.lm.execution`,
which runs nothing itself either.
"""

from __future__ import annotations

import re

from eval.lm import execution

_NUMBER = re.compile(r"#### *(-?[0-9][0-9,]*(?:\.[0-9]+)?)")
_FENCE = re.compile(r"```(?:python)?\n(.*?)(?:```|\Z)", re.DOTALL)


def number_of(text: str) -> str | None:
    """The number behind the last `#### `, without thousands' commas; None where there is none."""
    found = _NUMBER.findall(text)
    return found[-1].replace(",", "") if found else None


def final_number(references: list[str], predictions: list[str]) -> float:
    """GSM8K's strict match: 1 when the numbers behind `####` are the same text."""
    given = number_of(predictions[0])
    return float(given is not None and given == number_of(references[0]))


def box_of(text: str) -> str | None:
    r"""What stands in the last `\boxed{...}`, braces balanced; None where there is none or it does not end."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, begin = 0, start + len("\\boxed")
    for at in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[begin + 1 : at]
    return None


def _plain(text: str) -> str:
    """Without spaces, dollar signs and a dot at the end: the part of MATH's normalisation that our answers can need."""
    return re.sub(r"[\s$]", "", text).rstrip(".")


def boxed_answer(references: list[str], predictions: list[str]) -> float:
    r"""MATH's exact match: 1 when the last `\boxed{}` holds the reference's text but for spaces."""
    given = box_of(predictions[0])
    return float(given is not None and _plain(given) == _plain(references[0]))


def _code(reply: str) -> str:
    """The reply, or what stands in its first fence of three backticks."""
    fenced = _FENCE.search(reply)
    return fenced[1] if fenced else reply


def completed_programs(resps: list[list[str]], docs: list[dict]) -> list[str]:
    """HumanEval: the prompt, then the reply as the function's body, whose first line may lack its indentation."""
    return [doc["prompt"] + "    " + _code(reply).strip() + "\n" for (reply,), doc in zip(resps, docs, strict=True)]


def written_programs(resps: list[list[str]], docs: list[dict]) -> list[str]:
    """MBPP: the reply is the program."""
    return [_code(reply).strip() + "\n" for (reply,), _ in zip(resps, docs, strict=True)]


def completion_passes(doc: dict, results: list[str]) -> dict[str, float]:
    """HumanEval: 1 when the program passes `check`, which may use what the prompt defines, never what a reply makes of
    it."""
    tests = f"{doc['test']}\ncheck({doc['entry_point']})"
    return {"pass_at_1": float(execution.passes(results[0], tests, doc["prompt"], [doc["entry_point"]]))}


def program_passes(doc: dict, results: list[str]) -> dict[str, float]:
    """MBPP: 1 when the program passes the asserts."""
    return {"pass_at_1": float(execution.passes(results[0], "\n".join(doc["test_list"])))}
