"""Scores from lm-evaluation-harness, through workers that load it once (never imported here).

The harness asks the model itself, so a worker is busy for as long as a model answers. Each process that scores at the
same time therefore has a worker of its own, which the next one finds again (:mod:`eval.workers.client`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from emkit.errors import UserError
from eval.columns.kinds import SANDBOX, LMEval
from eval.journal import Journal
from eval.workers.client import Evaluation, Service, code, service

REQUEST_SECONDS = 3600.0  # for all benchmarks of one model
SLOTS = 64  # workers at once over one data folder
_DEVICES = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")  # a model is asked on the GPU that it was merged on


def evaluate(
    data_dir: str | Path,
    columns: list[LMEval],
    model: str | Path,
    dtype: str = "float32",
    device: str = "cpu",
    seconds: float = REQUEST_SECONDS,
    batch: int = 64,
    journal: Journal | None = None,
) -> dict[str, Evaluation]:
    """Let the harness ask the model in the folder ``model`` and score it, column by column.

    ``dtype`` (torch's name) is the model's while it answers, ``batch`` questions at once; answers that ``journal`` has
    are not asked for again. Raises :class:`UserError` for whatever fails, also for
    taking more than ``seconds``, and where programs are to be run and there is no sandbox.
    """
    names = [column.name for column in columns]
    asked = [column.model_dump(mode="json") for column in columns]
    about = {"columns": asked, "model": str(Path(model).resolve()), "dtype": dtype, "device": device, "batch": batch}
    about["journal"] = None if journal is None else [str(journal.path.resolve()), journal.identity]
    with _free(_service(data_dir)) as worker:
        found = worker.ask({"do": "evaluate", **about}, seconds, ", ".join(names))
    return {name: Evaluation(**found[name]) for name in names}


def prompts(data_dir: str | Path, column: LMEval, seconds: float = REQUEST_SECONDS) -> list[tuple[str, str]]:
    """Index and text of every item's question as the harness puts it, without worked examples and template."""
    with _free(_service(data_dir)) as worker:
        found = worker.ask({"do": "prompts", "column": column.model_dump(mode="json")}, seconds, column.name)
    return [(index, text) for index, text in found]


def versions(data_dir: str | Path) -> dict[str, str]:
    """Versions of the harness and its libraries, as the worker sees them."""
    with _free(_service(data_dir)) as worker:
        return worker.ask({"do": "versions"}, REQUEST_SECONDS, "versions")


@contextlib.contextmanager
def _free(worker: Service) -> Iterator[Service]:
    """The first worker that nobody uses, kept for the time of the block; the system frees it however we end."""
    for slot in range(SLOTS):
        ours = replace(worker, slot=slot)
        with open(ours.socket_path.with_suffix(".busy"), "a") as busy:
            try:
                fcntl.flock(busy, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield ours
            return
    raise UserError(f"{SLOTS} processes score at once over {worker.folder}: run fewer jobs")


def _service(data_dir: str | Path) -> Service:
    own = {"TOKENIZERS_PARALLELISM": "false", "HF_DATASETS_OFFLINE": "1"}
    own |= {name: os.environ[name] for name in _DEVICES if name in os.environ}
    return service("lm-evaluation-harness", "eval.lm.worker", data_dir, _code(), **own)


def _code() -> str:
    """Of the whole package: a task may name any function of it."""
    modules = sorted(f"eval.lm.{path.stem}" for path in Path(__file__).parent.glob("[a-z]*.py"))
    return code((*modules, *SANDBOX), "lm-evaluation-harness", "lm_eval")
