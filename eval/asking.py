"""Who asks a merged model a column's questions, and who scores its answers: the module ``asking`` of its harness.

VLMEvalKit and AlpacaEval score answers that the backbone gives here, in batches; lm-evaluation-harness asks the model
itself, in a process of its own. Each ``ask(merged, column, judged)`` returns ``(items, harness)``: the items as
:mod:`eval.scores` keeps them, and what the score file says of the harness. ``prompts(data, column, seconds)`` gives the
column's questions alone.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from emkit import backbones
from emkit.errors import UserError
from emkit.progress import report
from eval import memory
from eval.columns.kinds import Column
from eval.journal import Journal
from eval.judge import Judge, opened
from eval.judge.errors import NoJudge
from eval.places import Job
from eval.plan import Plan
from eval.workers.text import whole

COUNTED = ("requests", "unparsable")  # what a cell says about its judge: the same, however often replies were kept


@dataclass(frozen=True)
class Prompt:
    """The question of the item ``index`` of a column, and the bytes of its picture's file, if it has one."""

    index: str
    text: str
    picture: bytes | None = None


@dataclass(frozen=True)
class Judged:
    """The judge of a row's benchmarks, or why there is none."""

    judge: Judge | None = None
    why: str = "no judge was opened"

    @contextlib.contextmanager
    def counted(self) -> Iterator[tuple[Judge, dict[str, int]]]:
        """The judge, and what it was asked in the block (filled in at the end); ``NoJudge`` says why it failed."""
        if self.judge is None:
            raise NoJudge(self.why)
        counts: dict[str, int] = {}
        before, self.judge.failure = dict(self.judge.counts), ""
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
        if any(plan.protocol.columns[name].judge for name in benchmarks):
            upstream, model = plan.protocol.judge_upstream, plan.protocol.judge_model
            try:
                judge = opened(plan.judge, upstream, model, plan.protocol.judge_max_usd)
                judged = Judged(stack.enter_context(judge))
            except UserError as error:
                judged = Judged(why=str(error))
        yield judged


@dataclass(frozen=True)
class Merged:
    """A row's merged model: a checkpoint folder, opened when somebody first needs it in this process.

    ``identities``: benchmark → what names these weights and everything that this benchmark's answers depend on.
    """

    plan: Plan
    job: Job
    folder: Path
    identities: Mapping[str, str]

    @cached_property
    def opened(self) -> tuple[Any, Any]:
        """``(model, processor)`` in the protocol's dtype, on the profile's device."""
        report("loading the merged model")
        backbone, dtype = backbones.get(self.plan.profile.backbone), getattr(torch, self.plan.dtype)
        return backbone.load(self.folder, dtype=dtype, device=self.plan.profile.device)

    def close(self) -> None:
        """Let go of the model that was opened; the next answer opens it again."""
        self.__dict__.pop("opened", None)
        memory.let_go()

    def journal(self, benchmark: str) -> Journal:
        """The answers that it has given of a benchmark whose cell is not written yet."""
        return Journal(self.plan.answers(self.job, benchmark), self.identities[benchmark])

    def answers(self, column: Column, processor: Any, images: Sequence, questions: list[str], **kept: Any) -> list[str]:
        """Its greedy answers to ``questions``, each about its image (or None), read by ``processor``; ``kept``: what
        :meth:`emkit.backbones.base.Backbone.generate` takes of :mod:`eval.features`.

        Batches that were answered before this process was killed are not asked again.
        """
        backbone, batch = backbones.get(self.plan.profile.backbone), self.plan.protocol.generation.batch
        with self.journal(column.name).opened() as journal, memory.answering(batch):
            found = backbone.generate(
                *(self.opened[0], processor, images, questions, column.max_new_tokens),
                batch_size=batch,
                # which items, too: the same questions may be about other pictures
                answered=lambda items, answer: journal.once([list(items), [questions[i] for i in items]], answer),
                **kept,
            )
        return [whole(text) for text in found]


def ask(merged: Merged, benchmark: str, judged: Judged) -> tuple[list[dict], dict]:
    """Ask and score one column by its harness (:mod:`eval.vlm.asking`, :mod:`eval.lm.asking`, …)."""
    column = merged.plan.protocol.columns[benchmark]
    return importlib.import_module(f"{column.room}.asking").ask(merged, column, judged)
