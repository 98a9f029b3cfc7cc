"""Reading and checking a protocol: per benchmark, what is asked of whom and how it is scored."""

from __future__ import annotations

from pathlib import Path

import yaml

from emkit.errors import UserError
from emkit.schema import Key, boolean, choice, mapping, nearest, number, text
from emkit.zoo.subtasks import SUBTASKS
from eval.benchmarks import text_sets
from eval.benchmarks.text_sets import ALPACA_EVAL, LM_EVAL
from eval.lm import tasks

VLMEVALKIT = "vlmevalkit"
HARNESSES = (VLMEVALKIT, LM_EVAL, ALPACA_EVAL)
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
# of a text benchmark; what :func:`eval.benchmarks.text_sets.of_task` gives stands in the task file, not in the protocol
TEXT_KEYS = {
    "harness": (str, "lm-eval or alpaca_eval; absent: vlmevalkit"),
    "task": (str, "task file in eval/benchmarks/lm without .yaml; of a published set: the harness's own task"),
    "judge": (bool, "whether scoring asks a judge: AlpacaEval does"),
    "metric": (str, "what the harness computes, in words"),
    "subtask": ((str, type(None)), "sub-task of emkit.zoo.text that the items are drawn from; null: a published set"),
    "n": (int, "items of the evaluation split"),
    "validation_n": (int, "items of the validation split; 0 where there is none"),
    "max_new_tokens": (int, "longest answer in tokens"),
    "seed": ((int, type(None)), "seed of the drawn items"),
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
    "request_seconds": number(1),  # longest time that a harness may take over one benchmark of one row
}
_REQUIRED = {"name": str, "version": int, "image_size": (int, str, type(None)), "judge_upstream": str}
MIXED = "mixed"  # the image size that means several (emkit.zoo.data.sizes, which imports what drawing needs)


def load(path: str | Path) -> dict:
    """The protocol in a YAML file, checked, with what its task files say; `UserError` names the file and the key."""
    path = Path(path)
    try:
        protocol = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"protocol {path} does not exist") from error
    except yaml.YAMLError as error:
        raise UserError(f"protocol {path} is not valid YAML: {str(error).splitlines()[0]}") from error
    if isinstance(protocol, dict) and isinstance(protocol.get("benchmarks"), dict):
        filled = {name: text_sets.filled(settings) for name, settings in protocol["benchmarks"].items()}
        protocol = {**protocol, "benchmarks": filled}
    check(protocol, str(path))
    return protocol


def harness(settings: dict) -> str:
    """The harness that scores a protocol's benchmark."""
    return settings.get("harness", VLMEVALKIT)


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
        _check_benchmark(f"{where}: benchmarks.{name}", name, settings)


def _check_benchmark(where: str, name: str, settings: object) -> None:
    if not isinstance(settings, dict):
        raise UserError(f"{where}: must be a mapping of settings")
    if "harness" in settings:
        choice(*HARNESSES)(settings["harness"], f"{where}.harness")
    for key, check_value in BENCHMARK_OPTIONS.items():
        if key in settings:
            check_value(settings[key], f"{where}.{key}")
    if harness(settings) != VLMEVALKIT:
        return _check_text(where, name, settings)
    _check_keys(where, settings, BENCHMARK_KEYS)
    if settings["subtask"] is not None and settings["subtask"] not in SUBTASKS:
        raise UserError(f"{where}.subtask: unknown sub-task {settings['subtask']!r}; there are {', '.join(SUBTASKS)}")
    if settings["subtask"] is not None and settings["seed"] is None:
        raise UserError(f"{where}.seed: drawn items need a seed")


def _check_keys(where: str, settings: dict, keys: dict) -> None:
    for key, (kind, meaning) in keys.items():
        if key not in settings:
            raise UserError(f"{where}: `{key}` is missing ({meaning})")
        value = settings[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise UserError(f"{where}.{key}: {value!r} has the wrong type ({meaning})")


def _check_text(where: str, name: str, settings: dict) -> None:
    """A text benchmark: keys, a harness that can score it, and nothing that its task file says otherwise."""
    drawn = text_sets.is_drawn(settings)
    if drawn and isinstance(settings.get("task"), str):
        choice(*tasks.NAMES.values())(settings["task"], f"{where}.task")
    _check_keys(where, settings, TEXT_KEYS)
    asks = settings["harness"] == ALPACA_EVAL
    if settings["judge"] != asks:
        raise UserError(f"{where}.judge: {settings['harness']} {'asks' if asks else 'does not ask'} a judge")
    if not drawn:
        return
    column = tasks.column(settings["task"])
    if name != column or asks != (column == tasks.ALPACA):
        scored = ALPACA_EVAL if column == tasks.ALPACA else LM_EVAL
        raise UserError(f"{where}: the task {settings['task']} is the benchmark {column}, scored by {scored}")
    for key, value in text_sets.of_task(settings["task"]).items():
        if key not in text_sets.COUNTS and settings.get(key) != value:
            raise UserError(f"{where}.{key}: the task file {settings['task']}.yaml says {value!r}; leave the key out")
