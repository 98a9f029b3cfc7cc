"""One row as a job: merge, answer and score every benchmark, one file per cell, then throw the merged weights away.

Cells that stand already are kept, so a killed job loses at most the cell in progress. What goes wrong in a merge or in
a benchmark becomes a cell with status ``failed`` and its reason; the other cells are scored all the same.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from emkit import backbones, methods
from emkit.errors import UserError
from emkit.files import atomic_write, lock, write_json
from eval import features, judge, keys, scores
from eval.plan import Job, Plan
from eval.vlm import client
from eval.vlm.benchmarks import BENCHMARKS

COUNTED = ("requests", "unparsable")  # what a cell says about its judge: the same, however often replies were kept
KEPT = ("coefficients.json", "history.json")  # what a fit leaves beside the weights and a reader may want


@dataclass(frozen=True)
class Judged:
    """The judge of a row's benchmarks, or why there is none."""

    judge: judge.Judge | None = None
    why: str = "no judge was opened"

    @contextlib.contextmanager
    def counted(self) -> Iterator[tuple[str, dict]]:
        """Its address, and what it was asked in the block (filled in at the end); ``NoJudge`` says why it failed."""
        if self.judge is None:
            raise client.NoJudge(self.why)
        before, counts, self.judge.failure = dict(self.judge.counts), {}, ""
        try:
            yield self.judge.url, counts
        except client.NoJudge as error:
            raise client.NoJudge(f"{error}: {self.judge.failure}" if self.judge.failure else str(error)) from error
        counts.update({name: self.judge.counts[name] - before[name] for name in COUNTED})


def run_job(plan: Plan, job: Job) -> None:
    """Score what is missing of a job and leave its stamp; raises ``UserError`` when nothing can be recorded at all."""
    with lock(plan.run / "locks" / job.split / f"{job.name}.lock"):
        resolved = plan.resolved(job)
        missing = [name for name in plan.benchmarks if not plan.is_valid(job, name)]
        if missing:
            torch.set_num_threads(1)  # sums in another order are other numbers
            with _workspace(plan, job) as folder:
                _score(plan, resolved, missing, folder)
        with atomic_write(plan.stamp(job)) as part:
            part.write_text(f"{job.name}: {len(plan.benchmarks)} cells\n", encoding="utf-8")


@contextlib.contextmanager
def _workspace(plan: Plan, job: Job) -> Iterator[Path]:
    """A folder for merged weights, removed at the end; one that a killed job left is removed first."""
    folder = plan.run / "tmp" / job.split / job.name
    shutil.rmtree(folder, ignore_errors=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _score(plan: Plan, job: Job, benchmarks: list[str], folder: Path) -> None:
    about = {
        name: {"row": job.row, "seed": job.seed, "benchmark": name, **plan.expected(job, name)} for name in benchmarks
    }
    try:
        model, processor = _merged(plan, job, folder)
    except Exception as error:
        for name in benchmarks:
            scores.write_unscored(plan.cell(job, name), "failed", _reason("merging", error), **about[name])
        return
    with _judge(plan, benchmarks) as judged:
        for name in benchmarks:
            path, started = plan.cell(job, name), time.monotonic()
            try:
                items, harness = _evaluate(plan, job, name, model, processor, judged)
                scores.write_scored(path, items, harness=harness, **about[name])
            except client.NoJudge as error:
                scores.write_unscored(path, "no judge", str(error), **about[name])
            except Exception as error:
                scores.write_unscored(path, "failed", _reason("scoring", error), **about[name])
            print(f"{job.name} {name}: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)


def _merged(plan: Plan, job: Job, folder: Path):
    """Merge into ``folder`` and open the result; what a fit learned is kept beside the cells."""
    report = methods.merge_row(plan.recipe, job.row, job.seed, folder / "model", cache=plan.cache, scale=job.scale)
    write_json(plan.cells(job) / "merge.json", report)
    for name in KEPT:
        if (folder / name).is_file():
            with atomic_write(plan.cells(job) / name) as part:
                shutil.copyfile(folder / name, part)
    backbone, dtype = backbones.get(plan.recipe.backbone), getattr(torch, plan.dtype)
    return backbone.load(folder / "model", dtype=dtype, device=plan.recipe.device)


def _evaluate(plan: Plan, job: Job, benchmark: str, model, processor, judged: Judged) -> tuple[list[dict], dict]:
    """Answer a benchmark's questions in batches and let its own class score them: ``(items, harness)``."""
    settings, data = plan.protocol["benchmarks"][benchmark], plan.data(job.split)
    limit = plan.protocol.get("request_seconds", client.REQUEST_SECONDS)
    backbone = backbones.get(plan.recipe.backbone)
    prompts = client.prompts(data, benchmark, limit, settings.get("prompt_rule", "dataset"))
    images = [prompt.image for prompt in prompts]
    seen = None
    if plan.protocol.get("keep_image_features", False):
        identity = {"items": plan.items_identity(job.split, benchmark), "versions": keys.versions()}
        folder = plan.run / "features" / job.split / benchmark
        seen = features.kept(folder, identity, backbone, model, processor, images)
    questions = [prompt.text + settings["suffix"] for prompt in prompts]
    answers = backbone.generate(model, processor, images, questions, settings["max_new_tokens"], features=seen)
    predictions = {prompt.index: answer for prompt, answer in zip(prompts, answers)}
    if not BENCHMARKS[benchmark].judged:
        result = client.evaluate(data, benchmark, predictions, None, limit)
        return result.items, result.harness
    with judged.counted() as (url, counts):
        result = client.evaluate(data, benchmark, predictions, url, limit)
    return result.items, {**result.harness, "judge": counts}


@contextlib.contextmanager
def _judge(plan: Plan, benchmarks: list[str]) -> Iterator[Judged]:
    """The judge, while a judged benchmark is among those to score; one that cannot be costs those cells alone."""
    with contextlib.ExitStack() as stack:
        judged = Judged()
        if any(BENCHMARKS[name].judged for name in benchmarks):
            upstream, model = plan.protocol["judge_upstream"], plan.protocol.get("judge_model")
            try:
                opened = judge.opened(plan.judge, upstream, model, plan.protocol.get("judge_max_usd"))
                judged = Judged(stack.enter_context(opened))
            except UserError as error:
                judged = Judged(why=str(error))
        yield judged


def _reason(step: str, error: Exception) -> str:
    """One line that says what went wrong where."""
    text = " ".join(str(error).split()) or type(error).__name__
    return f"{step}: {text}"
