"""Reading and checking a protocol: per benchmark, what is asked of whom and how it is scored."""

from __future__ import annotations

from pathlib import Path

import yaml

from emkit.errors import UserError
from emkit.schema import Key, boolean, choice, mapping, nearest, number, text
from emkit.zoo.subtasks import SUBTASKS

# key: (accepted types, meaning); a protocol may say more about a benchmark, never less.
BENCHMARK_KEYS = {
    "harness_dataset": (str, "VLMEvalKit's name of the data set; its TSV is <name>.tsv"),
    "harness_split": ((str, type(None)), "value of the TSV's `split` column, where several benchmarks share one TSV"),
    "subtask": ((str, type(None)), "sub-task of emkit.zoo.data that the items are drawn from; null: a published set"),
    "n": (int, "items of the evaluation split"),
    "validation_n": (int, "items of the validation split; 0 where there is none"),
    "judge": (bool, "whether scoring asks a judge"),
    "max_new_tokens": (int, "longest answer in tokens"),
    "suffix": (str, "text added to the harness's own prompt"),
    "seed": ((int, type(None)), "seed of the drawn items"),
    "metric": (str, "what the harness computes, in words"),
    "version": (int, "raised whenever the items or the way they are asked change"),
}
DTYPES = ("float32", "bfloat16", "float16")
_GENERATION = {"dtype": Key(choice(*DTYPES), required=False), "decoding": Key(choice("greedy"), required=False)}
_JUDGE_TOKENS = {"prompt": Key(number(0)), "reply": Key(number(0))}  # of one request, for the estimate of its cost
# what a protocol may say of a benchmark besides
BENCHMARK_OPTIONS = {
    "judge_tokens": mapping(_JUDGE_TOKENS),
    "prompt_rule": choice("dataset", "qwen2_vl"),  # who puts the question: its dataset class, or that VLMEvalKit model
}
# what a protocol may say besides, each with the check of its value; what nobody reads is an error
OPTIONAL = {
    "generation": mapping(_GENERATION),  # dtype: that of the model that answers, float32 unless given
    "judge_model": text,  # the model that the judge's upstream is asked for, whatever the harness names
    "judge_max_usd": number(0),  # the most that the judge may cost, unless --max-usd or EMKIT_MAX_USD says another
    "keep_image_features": boolean,  # whether image features are kept for all rows (eval/features.py)
    "request_seconds": number(1),  # longest time that VLMEvalKit may take over one benchmark of one row
}
_REQUIRED = {"name": str, "version": int, "image_size": (int, str, type(None)), "judge_upstream": str}
MIXED = "mixed"  # the image size that means several (emkit.zoo.data.sizes, which imports what drawing needs)


def load(path: str | Path) -> dict:
    """The protocol in a YAML file, checked; raises `UserError` naming the file and the key that is wrong."""
    path = Path(path)
    try:
        protocol = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"protocol {path} does not exist") from error
    except yaml.YAMLError as error:
        raise UserError(f"protocol {path} is not valid YAML: {str(error).splitlines()[0]}") from error
    check(protocol, str(path))
    return protocol


def check(protocol: object, where: str = "protocol") -> None:
    """Raise `UserError` unless `protocol` has everything that writing and asking need."""
    if not isinstance(protocol, dict) or not isinstance(protocol.get("benchmarks"), dict) or not protocol["benchmarks"]:
        raise UserError(f"{where}: needs a mapping `benchmarks` from names to settings")
    for key, kind in _REQUIRED.items():
        if not isinstance(protocol.get(key), kind):
            raise UserError(f"{where}: `{key}` is missing or of the wrong type")
    if isinstance(protocol["image_size"], str) and protocol["image_size"] != MIXED:
        raise UserError(f"{where}: image_size is a number of pixels, null or '{MIXED}', not {protocol['image_size']!r}")
    known = [*_REQUIRED, *OPTIONAL, "benchmarks"]
    for key, value in protocol.items():
        if key not in known:
            raise UserError(f"{where}: unknown key '{key}': {nearest(key, known)}")
        if key in OPTIONAL:
            OPTIONAL[key](value, f"{where}: {key}")
    for name, settings in protocol["benchmarks"].items():
        _check_benchmark(f"{where}: benchmarks.{name}", settings)


def _check_benchmark(where: str, settings: object) -> None:
    if not isinstance(settings, dict):
        raise UserError(f"{where}: must be a mapping of settings")
    for key, check_value in BENCHMARK_OPTIONS.items():
        if key in settings:
            check_value(settings[key], f"{where}.{key}")
    for key, (kind, meaning) in BENCHMARK_KEYS.items():
        if key not in settings:
            raise UserError(f"{where}: `{key}` is missing ({meaning})")
        value = settings[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise UserError(f"{where}.{key}: {value!r} has the wrong type ({meaning})")
    if settings["subtask"] is not None and settings["subtask"] not in SUBTASKS:
        raise UserError(f"{where}.subtask: unknown sub-task {settings['subtask']!r}; there are {', '.join(SUBTASKS)}")
    if settings["subtask"] is not None and settings["seed"] is None:
        raise UserError(f"{where}.seed: drawn items need a seed")
