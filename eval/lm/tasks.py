"""The task files of `eval/benchmarks/lm`: what each text benchmark asks and how its replies are read.

A task file is lm-evaluation-harness's own YAML; under ``metadata`` it carries what emkit needs besides: the protocol's
name and version, the sub-task that items are drawn from, seed, and number of items per split. AlpacaEval's holds the
same settings for another package.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import yaml

from emkit.errors import UserError

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks" / "lm"
ALPACA = "AlpacaEval"  # scored by another package
NAMES = {ALPACA: "alpaca_eval", "GSM8K": "gsm8k", "MATH": "math", "HumanEval": "humaneval", "MBPP": "mbpp"}
SCORED = tuple(name for name in NAMES if name != ALPACA)  # by lm-evaluation-harness
EXECUTED = ("HumanEval", "MBPP")  # those whose score comes from running what a model wrote


class _Loader(yaml.SafeLoader):
    """Reads task files without importing the functions that they name."""


_Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


@cache
def settings(name: str) -> dict:
    """The task file of the benchmark (column) called ``name``, a key of NAMES; its functions by name only."""
    if name not in NAMES:
        raise UserError(f"unknown benchmark {name!r}; known: {', '.join(NAMES)}")
    return yaml.load((FOLDER / f"{NAMES[name]}.yaml").read_text(encoding="utf-8"), _Loader)


def column(task: str) -> str:
    """The benchmark that the task file ``task`` is of."""
    for name, known in NAMES.items():
        if known == task:
            return name
    raise UserError(f"unknown task {task!r}; there are {', '.join(NAMES.values())}")


def file(name: str) -> str:
    """The benchmark's file inside a data folder."""
    return settings(name)["dataset_kwargs"]["data_files"]["test"]


def rows(data_dir: str | Path, name: str) -> list[dict]:
    """The benchmark's items as they stand in a data folder; ``UserError`` where they are missing or damaged."""
    path = Path(data_dir) / file(name)
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    except FileNotFoundError as error:
        raise UserError(
            f"no benchmark data {path}: write it with `python -m eval data RECIPE --split SPLIT`"
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as JSON lines: write the data again") from error
