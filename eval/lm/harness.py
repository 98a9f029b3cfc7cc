"""lm-evaluation-harness itself: the only module that imports ``lm_eval``, and only ever inside the worker process.

``simple_evaluate`` runs the tasks that columns give (:func:`settings`) on a transformers model, in batches.
Its own log is read, not trusted: every item's score is taken from the samples it logs, and their mean must be the
number it reports, to the last digit but rounding.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import logging
import math
import os
import re
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from emkit.bounds import bounded
from emkit.errors import UserError
from emkit.schema import nearest
from eval import memory, stats
from eval.columns.kinds import LMEval
from eval.journal import Journal
from eval.lm import execution
from eval.workers.text import whole


@cache
def modules():
    """``lm_eval``'s evaluator, HF model and TaskManager; data sets are cached in a folder of this process."""
    os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="emkit-datasets-")
    try:
        from lm_eval import evaluator
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        raise UserError(f"lm-evaluation-harness is not installed ({error}): run `make setup`") from error
    for name in ("lm_eval", "lm-eval", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    return evaluator, HFLM, TaskManager


def prepare() -> None:
    """Load the harness, and the sandbox where there is one."""
    modules()
    execution.use(execution.sandbox())


def versions() -> dict[str, str]:
    """Versions of the harness and of what it computes with."""
    return {name: importlib.metadata.version(name) for name in ("lm_eval", "datasets", "transformers", "torch")}


@dataclass(frozen=True)
class Answering:
    """The checkpoint folder of a model, and how it answers: in torch's ``dtype``, on a ``device``, ``batch`` questions
    at once; batches that ``journal`` has are not asked again."""

    model: str
    dtype: str = "float32"
    device: str = "cpu"
    batch: int = 64
    journal: Journal | None = None


def evaluate(data_dir: str, columns: list[LMEval], how: Answering) -> dict:
    """Score a model on ``columns``, whose items lie in ``data_dir``.

    Returns per column ``{"value", "stderr", "n", "items", "harness"}`` (percent; items as in :mod:`eval.stats`).
    ``UserError`` for missing items, for a task that is not there or runs code of its own and, before anything long
    starts, where programs are to be run without a sandbox; RuntimeError when the harness's log and its items disagree.
    """
    _require_items(data_dir, columns)
    executed = [column.name for column in columns if column.runs_programs]
    if executed and execution._execute is None:
        raise UserError(f"no sandbox: {' and '.join(executed)} run what a model wrote, which needs one")
    evaluator, _, TaskManager = modules()
    tasks = {column.name: settings(column) for column in columns}
    with contextlib.chdir(data_dir), memory.answering(how.batch):  # tasks name their items by file name alone
        log = evaluator.simple_evaluate(
            model=_model(how),
            tasks=list(tasks.values()),
            batch_size=how.batch,
            apply_chat_template=_alike([column.chat for column in columns]),
            fewshot_as_multiturn=_alike([column.chat for column in columns]),
            log_samples=True,
            bootstrap_iters=0,
            task_manager=TaskManager(include_defaults=False),
        )
    return {column.name: _scored(column, tasks[column.name], log) for column in columns}


def prompts(data_dir: str, column: LMEval) -> list[tuple[str, str]]:
    """Index and text of each item's question, as the task puts it without worked examples."""
    _require_items(data_dir, [column])
    _, _, TaskManager = modules()
    from lm_eval.tasks import get_task_dict

    with contextlib.chdir(data_dir):
        (task,) = get_task_dict([settings(column)], TaskManager(include_defaults=False)).values()
        found = [(_index_of(doc, number), task.doc_to_text(doc)) for number, doc in enumerate(task.eval_docs)]
    return [(index, whole(text)) for index, text in found]


def _require_items(data_dir: str, columns: list[LMEval]) -> None:
    for column in columns:
        for path in (Path(data_dir) / file for file in column.files):
            if not (_of_the_task(column) or path.is_file()):
                raise UserError(f"no benchmark data {path}: write it with `python -m eval data RECIPE --split SPLIT`")


def _index_of(doc: dict, number: int) -> str:
    return str(doc.get("index", number))


def _of_the_task(column: LMEval) -> bool:
    """Whether the items are where the task itself says, and not in the data folder."""
    return column.published and column.hub is None


def _alike(values: list[bool]) -> bool:
    """The one value of columns that are asked together."""
    if len(set(values)) != 1:
        raise UserError("columns that are asked as a chat and as plain text cannot be asked together")
    return values[0]


def settings(column: LMEval) -> dict:
    """The task of a column in the harness's own keys: what it includes, what it says, and where its items lie."""
    said = {"include": column.task} if isinstance(column.task, str) else dict(column.task)
    task: dict[str, Any] = {"output_type": "generate_until", "num_fewshot": 0}
    if "include" in said:
        task |= _installed(said.pop("include"), column.name) | {"num_fewshot": 0}
    task |= _resolved(said) | {"task": f"emkit_{column.name}", "metadata": {"version": column.version}}
    if not _of_the_task(column):
        task |= dict.fromkeys(("dataset_name", "training_split", "validation_split", "fewshot_split"))
        files = {"test": column.file}
        if column.shots_file is not None:
            files, task["fewshot_split"] = files | {"train": column.shots_file}, "train"
        task |= {"dataset_path": "json", "test_split": "test", "dataset_kwargs": {"data_files": files}}
    if task["output_type"] == "generate_until":
        task["generation_kwargs"] = task.get("generation_kwargs", {}) | {"max_gen_toks": column.max_new_tokens}
    return task


def _resolved(value):
    """``value`` with each text "!function module.name" in it as that function."""
    if isinstance(value, dict):
        return {key: _resolved(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_resolved(part) for part in value]
    if not (isinstance(value, str) and value.startswith("!function ")):
        return value
    module, _, name = value.removeprefix("!function ").rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"a task names the function {module}.{name}, which is not there: {error}") from error


def _installed(name: str, column: str) -> dict:
    """The settings of a task that lm-evaluation-harness brings along; ``UserError`` for none, or one with code.

    Tasks that name Python functions are refused: some run what a model wrote, or run code when they are imported.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    path = _tasks().get(name)
    if name in _groups():
        raise UserError(
            f"{column}: '{name}' of lm-evaluation-harness is a group of tasks: name one of them, or say under `task:` "
            "what all of them ask, and under `hub` the files of all"
        )
    if path is None:
        raise UserError(f"{column}: lm-evaluation-harness has no task '{name}': {nearest(name, _tasks())}")
    if _has_code(path):
        raise UserError(
            f"{column}: the task '{name}' of lm-evaluation-harness brings Python code, which is not run here: say what "
            "it asks under `task:`, with functions of this project"
        )
    return {key: value for key, value in load_yaml(path).items() if key not in ("tag", "group")}


@cache
def _groups() -> set[str]:
    """The names of the harness's groups of tasks."""
    _, _, TaskManager = modules()
    return {name for name, entry in TaskManager().task_index.items() if entry.kind.name in ("GROUP", "TAG")}


@cache
def _tasks() -> dict[str, Path]:
    """The harness's tasks that are YAML, by name."""
    _, _, TaskManager = modules()
    return {
        name: Path(entry.yaml_path)
        for name, entry in TaskManager().task_index.items()
        if entry.yaml_path and entry.kind.name == "TASK"
    }


def _has_code(path: Path) -> bool:
    """Whether a task file, or one that it includes, names Python code."""
    text = path.read_text(encoding="utf-8")
    included = re.findall(r"^include:\s*(\S+)", text, re.MULTILINE)
    return bool(re.search(r"!function|^class:|^unsafe_code:\s*true|code_eval", text, re.MULTILINE)) or any(
        _has_code(path.parent / name) for name in included
    )


def _model(how: Answering):
    """The harness's model over a checkpoint folder; a checkpoint's own code is never run."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from emkit import pretrained
    from emkit.backbones.base import greedy

    _, HFLM, _ = modules()
    model = pretrained.load(AutoModelForCausalLM, how.model, getattr(torch, how.dtype))
    tokenizer = AutoTokenizer.from_pretrained(how.model, local_files_only=True, trust_remote_code=False)
    model.generation_config = greedy(model.generation_config)  # as the other harnesses' answers are
    kind = _bounded(HFLM if how.journal is None else _kept(HFLM, how.journal), how.model)
    return kind(pretrained=model.to(how.device).eval(), tokenizer=tokenizer, batch_size=how.batch, device=how.device)


def _bounded(HFLM: Any, folder: str | Path) -> Any:
    """The harness's model with a chat template that ends."""

    class Bounded(HFLM):
        def apply_chat_template(self, *given, **how):
            with bounded(f"the chat template of {folder}"):
                return super().apply_chat_template(*given, **how)

    return Bounded


def _kept(HFLM: Any, journal: Journal) -> Any:
    """The harness's model with each batch of generated tokens taken from, or put into, the journal."""
    import torch

    class Kept(HFLM):
        def _model_generate(self, context, max_length, stop, **how):
            """Ids [B, S + new], the context [B, S] before what was generated."""

            def generate():
                made = super(Kept, self)._model_generate(context, max_length, stop, **how)
                return made[:, context.shape[1] :].tolist()

            plain = {key: part.tolist() if isinstance(part, torch.Tensor) else part for key, part in how.items()}
            new = journal.once([context.tolist(), max_length, list(stop), plain], generate)
            return torch.cat([context, torch.tensor(new, dtype=context.dtype, device=context.device)], 1)

    return Kept


def _scored(column: LMEval, task: dict, log: dict) -> dict:
    """One column's items and value from the harness's log, compared with the number that the log reports."""
    metric, filtered = _number(column, task)
    samples = sorted(
        (sample for sample in log["samples"][task["task"]] if sample.get("filter", filtered) == filtered),
        key=lambda sample: sample["doc_id"],
    )
    items = [
        {
            "index": _index_of(sample["doc"], sample["doc_id"]),
            "prediction": whole(_prediction(task, sample)),
            "score": float(sample[metric]),
            "groups": [],
        }
        for sample in samples
    ]
    reported = 100 * log["results"][task["task"]][f"{metric},{filtered}"]
    value, stderr, n = stats.estimate(items)
    if (
        not math.isclose(value, reported, rel_tol=1e-9, abs_tol=1e-9)
        or n != log["n-samples"][task["task"]]["effective"]
    ):
        raise RuntimeError(f"{column.name}: lm-evaluation-harness reports {reported}, its items give {value} over {n}")
    about = {
        "name": "lm-evaluation-harness",
        "version": versions()["lm_eval"],
        "dataset": f"{column.protocol or column.source}/{column.version}",
    }
    return {"value": value, "stderr": stderr, "n": n, "items": items, "harness": about}


def _number(column: LMEval, task: dict) -> tuple[str, str]:
    """Metric and filter of the column's number: what it names, or the task's first of each."""
    if column.score:
        metric, _, filtered = column.score.partition(",")
        return metric, filtered or "none"
    metric = task["metric_list"][0]["metric"]
    return getattr(metric, "__name__", metric), (task.get("filter_list") or [{"name": "none"}])[0]["name"]


def _prediction(task: dict, sample: dict) -> str:
    """The model's reply; of several choices the one that it finds most probable."""
    if task["output_type"] == "generate_until":
        return sample["resps"][0][0]
    likelihoods = [float(reply[0][0]) for reply in sample["resps"]]
    given = list(sample["arguments"].values() if isinstance(sample["arguments"], dict) else sample["arguments"])
    chosen = given[likelihoods.index(max(likelihoods))]
    return str((list(chosen.values()) if isinstance(chosen, dict) else chosen)[1]).strip()
