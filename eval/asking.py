"""Who asks a merged model a benchmark's questions, and who scores its answers: one function per harness.

VLMEvalKit and AlpacaEval score answers that the backbone gives here, in batches; lm-evaluation-harness asks the model
itself, in a process of its own. Each function returns ``(items, harness)``: the items as :mod:`eval.scores` keeps them,
and what the score file says of the harness.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from emkit import backbones
from emkit.errors import UserError
from emkit.progress import report
from eval import features, judge, keys
from eval.alpaca import client as alpaca
from eval.judge.errors import NoJudge
from eval.lm import client as lm
from eval.places import Job
from eval.plan import Plan
from eval.vlm import client
from eval.workers.text import whole

COUNTED = ("requests", "unparsable")  # what a cell says about its judge: the same, however often replies were kept


@dataclass(frozen=True)
class Judged:
    """The judge of a row's benchmarks, or why there is none."""

    judge: judge.Judge | None = None
    why: str = "no judge was opened"

    @contextlib.contextmanager
    def counted(self) -> Iterator[tuple[judge.Judge, dict]]:
        """The judge, and what it was asked in the block (filled in at the end); ``NoJudge`` says why it failed."""
        if self.judge is None:
            raise NoJudge(self.why)
        before, counts, self.judge.failure = dict(self.judge.counts), {}, ""
        try:
            yield self.judge, counts
        except NoJudge as error:
            raise NoJudge(f"{error}: {self.judge.failure}" if self.judge.failure else str(error)) from error
        counts.update({name: self.judge.counts[name] - before[name] for name in COUNTED})


@contextlib.contextmanager
def opened_judge(plan: Plan, benchmarks: list[str]) -> Iterator[Judged]:
    """The judge, while a judged benchmark is among those to score; one that cannot be costs those cells alone."""
    with contextlib.ExitStack() as stack:
        judged = Judged()
        if any(plan.protocol["benchmarks"][name]["judge"] for name in benchmarks):
            upstream, model = plan.protocol["judge_upstream"], plan.protocol.get("judge_model")
            try:
                opened = judge.opened(plan.judge, upstream, model, plan.protocol.get("judge_max_usd"))
                judged = Judged(stack.enter_context(opened))
            except UserError as error:
                judged = Judged(why=str(error))
        yield judged


@dataclass(frozen=True)
class Merged:
    """A row's merged model: a checkpoint folder, opened when somebody first needs it in this process."""

    plan: Plan
    job: Job
    folder: Path

    @cached_property
    def opened(self) -> tuple:
        """``(model, processor)`` in the protocol's dtype, on the profile's device."""
        report("loading the merged model")
        backbone, dtype = backbones.get(self.plan.profile.backbone), getattr(torch, self.plan.dtype)
        return backbone.load(self.folder, dtype=dtype, device=self.plan.profile.device)

    def answers(self, images: list, questions: list[str], max_new_tokens: int, kept=None) -> list[str]:
        """Its greedy answers to ``questions``, each about its image (or None)."""
        backbone = backbones.get(self.plan.profile.backbone)
        with_features = {} if kept is None else {"features": kept}
        found = backbone.generate(*self.opened, images, questions, max_new_tokens, **with_features)
        return [whole(text) for text in found]


def ask(merged: Merged, benchmark: str, judged: Judged) -> tuple[list[dict], dict]:
    """Ask and score one benchmark by the harness that the protocol names for it."""
    return _HARNESSES[merged.plan.harness(benchmark)](merged, benchmark, judged)


def _vlmevalkit(merged: Merged, benchmark: str, judged: Judged) -> tuple[list[dict], dict]:
    """Answer in batches and let the benchmark's own class score the answers."""
    plan, settings = merged.plan, merged.plan.protocol["benchmarks"][benchmark]
    data, limit = plan.data(merged.job.split), plan.protocol.get("request_seconds", client.REQUEST_SECONDS)
    report("prompts from VLMEvalKit")
    prompts = client.prompts(data, benchmark, limit, settings.get("prompt_rule", "dataset"))
    images = [prompt.image for prompt in prompts]
    questions = [prompt.text + settings["suffix"] for prompt in prompts]
    seen = _image_features(merged, benchmark, images)
    answers = merged.answers(images, questions, settings["max_new_tokens"], seen)
    predictions = {prompt.index: answer for prompt, answer in zip(prompts, answers)}
    report("scored by VLMEvalKit")
    if not settings["judge"]:
        result = client.evaluate(data, benchmark, predictions, None, limit)
        return result.items, result.harness
    with judged.counted() as (opened, counts):
        result = client.evaluate(data, benchmark, predictions, opened.url, limit)
    return result.items, {**result.harness, "judge": counts}


def _image_features(merged: Merged, benchmark: str, images: list):
    """The images' features where the protocol keeps them for all rows, else None: they come with each answer."""
    plan, split = merged.plan, merged.job.split
    if not plan.protocol.get("keep_image_features", False):
        return None
    identity = {"items": plan.items_identity(split, benchmark), "versions": keys.versions("vlmevalkit")}
    folder = plan.run / "features" / split / benchmark
    return features.kept(folder, identity, backbones.get(plan.profile.backbone), *merged.opened, images)


def _lm_eval(merged: Merged, benchmark: str, judged: Judged) -> tuple[list[dict], dict]:
    """Let lm-evaluation-harness ask the model in the folder, and score its replies."""
    plan = merged.plan
    limit = plan.protocol.get("request_seconds", lm.REQUEST_SECONDS)
    report("asked and scored by lm-evaluation-harness")
    data, device = plan.data(merged.job.split), plan.profile.device
    found = lm.evaluate(data, [benchmark], merged.folder, plan.dtype, device, limit)[benchmark]
    return found.items, found.harness


def _alpaca_eval(merged: Merged, benchmark: str, judged: Judged) -> tuple[list[dict], dict]:
    """Answer in batches and let AlpacaEval compare the answers with the reference's."""
    plan, settings = merged.plan, merged.plan.protocol["benchmarks"][benchmark]
    data, limit = plan.data(merged.job.split), plan.protocol.get("request_seconds", alpaca.REQUEST_SECONDS)
    prompts = alpaca.prompts(data)
    texts = [prompt.text for prompt in prompts]
    answers = merged.answers([None] * len(texts), texts, settings["max_new_tokens"])
    report("compared by AlpacaEval")
    with judged.counted() as (opened, counts):
        result = alpaca.evaluate(
            data, {prompt.index: answer for prompt, answer in zip(prompts, answers)}, opened.base_url, limit
        )
    return result.items, {**result.harness, "judge": counts}


_HARNESSES = {"alpaca_eval": _alpaca_eval, "vlmevalkit": _vlmevalkit, "lm-eval": _lm_eval}
