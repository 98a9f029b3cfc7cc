"""The task files of `eval/benchmarks/lm`: what each benchmark asks, and the writing of its items as JSON lines.

A task file is lm-evaluation-harness's own YAML; under ``metadata`` it carries what emkit needs besides: the protocol's
name and version, the sub-task that items are drawn from, seed, and number of items per split.
"""

from __future__ import annotations

import itertools
import json
from functools import cache
from pathlib import Path

import yaml

from emkit.errors import UserError
from emkit.files import atomic_write, sha256_file, write_json

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks" / "lm"
NAMES = {"GSM8K": "gsm8k", "MATH": "math", "HumanEval": "humaneval", "MBPP": "mbpp"}  # column -> task file
COUNTS = {"evaluation": "n", "validation": "validation_n"}
ALPACA = "AlpacaEval"  # scored by another package; its items are written here as well
EXECUTED = ("HumanEval", "MBPP")  # those whose score comes from running what a model wrote


class _Loader(yaml.SafeLoader):
    """Reads task files without importing the functions that they name."""


_Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


@cache
def settings(name: str) -> dict:
    """The task file of the benchmark called ``name`` (a key of NAMES, or ALPACA), its functions by name only."""
    known = {**NAMES, ALPACA: "alpaca_eval"}
    if name not in known:
        raise UserError(f"unknown benchmark {name!r}; known: {', '.join(known)}")
    return yaml.load((FOLDER / f"{known[name]}.yaml").read_text(encoding="utf-8"), _Loader)


def file(name: str) -> str:
    """The benchmark's file inside a data folder."""
    return settings(name)["dataset_kwargs"]["data_files"]["test"]


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


def write(split: str, out: str | Path, counts: dict[str, int] | None = None) -> dict:
    """Write every benchmark's items of ``split`` into the folder ``out``, then ``manifest.json``; returns the manifest.

    Items are all different. ``counts`` gives other numbers of items than the task files. The manifest holds for each
    benchmark its file, number of items, protocol, version and the file's sha256.
    """
    if split not in COUNTS:
        raise UserError(f"unknown split {split!r}: benchmarks are written for {' or '.join(COUNTS)}")
    out, entries = Path(out), {}
    for name in (ALPACA, *NAMES):
        about = settings(name)["metadata"]
        n = (counts or {}).get(name, about[COUNTS[split]])
        path = out / file(name)
        with atomic_write(path) as part:
            part.write_text(_text(_items(about["subtask"], split, about["seed"], n)), encoding="utf-8")
        protocol = {"protocol": about["protocol"], "version": about["version"]}
        entries[name] = {"file": path.name, "n": n, "sha256": sha256_file(path), **protocol}
    manifest = {"split": split, "benchmarks": entries}
    write_json(out / "manifest.json", manifest)
    return manifest


def _items(subtask: str, split: str, seed: int, n: int) -> list:
    from emkit.zoo.text import distinct

    found = list(itertools.islice(distinct(subtask, split, seed), n))
    if len(found) < n:
        raise UserError(f"{subtask} has only {len(found)} different items of its {split} split, not {n}: ask for fewer")
    return found


def _text(items: list) -> str:
    """The items as JSON lines with an index; AlpacaEval's as the one JSON list that its package reads."""
    if items and items[0].subtask == "alpaca_eval":
        return json.dumps([_FIELDS["alpaca_eval"](item) for item in items], ensure_ascii=False, indent=1) + "\n"
    lines = (
        {"index": f"{item.subtask}/{number}", "kind": item.kind, **_FIELDS[item.subtask](item)}
        for number, item in enumerate(items)
    )
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
