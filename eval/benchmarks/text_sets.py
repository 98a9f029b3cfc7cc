"""The text benchmarks: what a protocol takes from a task file, and a benchmark's items as JSON lines.

A task file (`eval/benchmarks/lm`) says once what is asked: sub-task, seed, longest reply, version, number of items. A
protocol names the file and may ask for other numbers of items; everything else it takes from the file.
"""

from __future__ import annotations

import itertools
import json

from emkit.errors import UserError
from emkit.files import sha256_json
from eval.lm import tasks

LM_EVAL, ALPACA_EVAL = "lm-eval", "alpaca_eval"  # the harnesses that score text
COUNTS = ("n", "validation_n")  # what a protocol may say otherwise than its task file


def is_drawn(settings: dict) -> bool:
    """Whether a text benchmark's items are drawn here; `subtask: null` means a published set."""
    return settings.get("subtask", "") is not None


def of_task(task: str) -> dict:
    """What the task file `task` says about a protocol's benchmark; `UserError` for an unknown one.

    `task_sha256` is over everything in the file, so that a changed prompt or extraction changes the protocol.
    """
    settings = tasks.settings(tasks.column(task))
    about, limit = settings["metadata"], settings["generation_kwargs"]["max_gen_toks"]
    said = {key: about[key] for key in ("subtask", "n", "validation_n", "seed", "version")}
    return said | {"max_new_tokens": limit, "task_sha256": sha256_json(settings)}


def filled(settings: object) -> object:
    """A benchmark's settings with what its task file says where they say nothing; others as they are."""
    if not isinstance(settings, dict) or settings.get("harness") not in (LM_EVAL, ALPACA_EVAL):
        return settings
    if not is_drawn(settings) or settings.get("task") not in tasks.NAMES.values():
        return settings
    return of_task(settings["task"]) | settings


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
}


def lines(settings: dict, split: str, n: int) -> list[str]:
    """The first `n` items of a split, all different, one JSON line each; `UserError` where there are not so many."""
    from emkit.zoo.text import distinct

    subtask = settings["subtask"]
    found = list(itertools.islice(distinct(subtask, split, settings["seed"]), n))
    if len(found) < n:
        raise UserError(f"{subtask} has only {len(found)} different items of its {split} split, not {n}: ask for fewer")
    rows = (
        {"index": f"{subtask}/{number}", "kind": item.kind, **_FIELDS[subtask](item)}
        for number, item in enumerate(found)
    )
    return [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
