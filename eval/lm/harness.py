"""lm-evaluation-harness itself: the only module that imports ``lm_eval``, and only ever inside the worker process.

``simple_evaluate`` runs our task files (and no other: ``include_defaults=False``) on a transformers model, in batches.
Its own log is read, not trusted: every item's score is taken from the samples it logs, and their mean must be the
number it reports, to the last digit but rounding.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import math
import os
import tempfile
from functools import cache
from pathlib import Path

from emkit.errors import UserError
from eval import stats
from eval.lm import execution, tasks
from eval.workers.text import whole

BATCH = 64  # texts generated at once


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


def evaluate(data_dir: str, names: list[str], model: str, dtype: str, device: str) -> dict:
    """Score the model in the folder ``model`` on the benchmarks ``names``, whose items lie in ``data_dir``.

    Returns per benchmark ``{"value", "stderr", "n", "items", "harness"}`` (percent; items as in :mod:`eval.stats`).
    ``UserError`` for missing items and, before anything long starts, where code is to be scored without a sandbox;
    RuntimeError when the harness's log and its items disagree.
    """
    paths = {name: Path(data_dir) / tasks.file(name) for name in names}
    for path in paths.values():
        if not path.is_file():
            raise UserError(f"no benchmark data {path}: write it with `python -m eval data RECIPE --split SPLIT`")
    executed = [name for name in names if name in tasks.EXECUTED]
    if executed and execution._execute is None:
        raise UserError(f"no sandbox: {' and '.join(executed)} run what a model wrote, which needs one")
    evaluator, _, TaskManager = modules()
    with contextlib.chdir(data_dir):  # task files name their items by file name alone
        log = evaluator.simple_evaluate(
            model=_model(model, dtype, device),
            tasks=[tasks.settings(name)["task"] for name in names],
            batch_size=BATCH,
            apply_chat_template=True,
            fewshot_as_multiturn=True,
            log_samples=True,
            bootstrap_iters=0,
            task_manager=TaskManager(include_path=str(tasks.FOLDER), include_defaults=False),
        )
    return {name: _scored(name, log) for name in names}


def _model(folder: str, dtype: str, device: str):
    """The harness's model over a checkpoint folder; a checkpoint's own code is never run."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, HFLM, _ = modules()
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=getattr(torch, dtype), local_files_only=True, trust_remote_code=False, use_safetensors=True
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return HFLM(pretrained=model.to(device).eval(), tokenizer=tokenizer, batch_size=BATCH, device=device)


def _scored(name: str, log: dict) -> dict:
    """One benchmark's items and value from the harness's log, compared with the number that the log reports."""
    config = tasks.settings(name)
    task = config["task"]
    metric = config["metric_list"][0]["metric"].rpartition(".")[2]
    filtered = config.get("filter_list", [{"name": "none"}])[0]["name"]
    samples = sorted(log["samples"][task], key=lambda sample: sample["doc_id"])
    items = [
        {
            "index": sample["doc"]["index"],
            "prediction": whole(sample["resps"][0][0]),
            "score": float(sample[metric]),
            "groups": [],
        }
        for sample in samples
    ]
    reported = 100 * log["results"][task][f"{metric},{filtered}"]
    value, stderr, n = stats.estimate(items)
    if not math.isclose(value, reported, rel_tol=1e-9, abs_tol=1e-9) or n != log["n-samples"][task]["effective"]:
        raise RuntimeError(f"{name}: lm-evaluation-harness reports {reported}, its items give {value} over {n}")
    about = {
        "name": "lm-evaluation-harness",
        "version": versions()["lm_eval"],
        "dataset": f"{config['metadata']['protocol']}/{config['metadata']['version']}",
    }
    return {"value": value, "stderr": stderr, "n": n, "items": items, "harness": about}
