"""A drawn text column's items as JSON lines, in the keys that its task reads."""

from __future__ import annotations

import itertools
import json

from emkit.errors import UserError
from emkit.zoo.text import distinct

_FIELDS = {
    "alpaca_eval": lambda item: {  # the keys of alpaca_eval's reference outputs
        "instruction": item.prompt,
        "output": item.fields["reference"],
        "generator": "reference",
        "dataset": item.kind,
    },
    "gsm8k": lambda item: {"question": item.prompt, "answer": item.response},
    "math": lambda item: {"problem": item.prompt, "solution": item.response, "answer": item.fields["answer"]},
    "humaneval": lambda item: item.fields,
    "mbpp": lambda item: item.fields,
    "word_problems": lambda item: {"question": item.prompt, "answer": item.response},
    "composed": lambda item: item.fields,
}


def lines(subtask: str, seed: int, split: str, n: int) -> list[str]:
    """The first `n` items of a split, all different, one JSON line each; `UserError` where there are not so many."""
    found = list(itertools.islice(distinct(subtask, split, seed), n))
    if len(found) < n:
        raise UserError(f"{subtask} has only {len(found)} different items of its {split} split, not {n}: ask for fewer")
    rows = (
        {"index": f"{subtask}/{number}", "kind": item.kind, **_FIELDS[subtask](item)}
        for number, item in enumerate(found)
    )
    return [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
