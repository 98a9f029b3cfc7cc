"""A zoo opened for a notebook, real questions of each expert's columns, and two quick measures of a live model.

Both measures are yardsticks for looking around in seconds. A table's scores come from the harnesses, which also ask
many more questions.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

from PIL.Image import Image

from emkit import Experts, Live, backbones
from emkit.alignment.sources import JsonlSource
from emkit.errors import UserError
from emkit.schema import nearest
from eval import columns, plan, profile, table
from eval.places import Places
from eval.resolved import pinned

VALIDATION = "validation"  # the items on which a profile's scales are chosen; no row of a table is scored on them


@dataclass(frozen=True)
class Question:
    """One question of a column: ``prompt`` as the column's harness puts it, ``image`` or None, the ``gold`` answer.

    ``right(answer)`` says whether an answer counts (see :func:`accuracy`); ``tokens``: the column's longest answer.
    """

    prompt: str
    image: Image | None
    gold: str
    column: str
    right: Callable[[str], bool] = field(repr=False, compare=False)
    tokens: int = 64


class Zoo:
    """The models of a profile for one backbone: nothing is read before it is asked for, and then once."""

    def __init__(self, asked: str | Path, backbone: str, results: str | Path):
        self.asked, self.backbone, self.results = asked, backbone, results
        self.profile = profile.load(profile.find(asked, backbone))
        if self.profile.backbone != backbone:
            raise UserError(f"the profile {asked} is of the backbone {self.profile.backbone}, not of {backbone}")
        self.names = list(self.profile.models.experts)

    @cached_property
    def experts(self) -> Experts:
        """Base and experts, compared; ``UserError`` for models that are not there or do not fit."""
        models = self.profile.models
        for folder in (models.base, *models.experts.values()):
            if self.profile.zoo is not None and not Path(folder).is_dir():
                raise UserError(f"there is no model {folder}: `{self.plan.command}` trains the zoo {self.profile.zoo}")
        return Experts(self.named["base"], {name: self.named[name] for name in self.names}, backbone=self.backbone)

    @cached_property
    def named(self) -> dict[str, str]:
        """Role → folder, or hub id at the revision that the profile's runs read."""
        places = Places(Path(self.results) / self.profile.name, self.backbone, "", ())
        return {role: pinned(name, places.revisions) for role, name in self.profile.checkpoints.items()}

    @cached_property
    def live(self) -> Live:
        """The base's model in memory, to be given merged weights and asked."""
        return self.experts.live(self.profile.device)

    @cached_property
    def plan(self) -> plan.Plan:
        """What the backbone's table runs under the profile; ``UserError`` where no shipped table is of it."""
        for name in table.names():
            if table.load(name).backbone == self.profile.backbone:
                return plan.Plan(name, self.asked, self.results)
        raise UserError(f"no table of eval/tables is of the backbone '{self.profile.backbone}'")


def open_zoo(asked: str | Path, backbone: str, results: str | Path = "results") -> Zoo:
    """The zoo of a profile (a name, a folder or a YAML file) for ``backbone``; ``results``: where its tables lie."""
    return Zoo(asked, backbone, results)


def questions(zoo: Zoo, task: str, n: int, seed: int = 0) -> list[Question]:
    """``n`` questions of the columns of the expert ``task``, which take turns; the same for the same ``seed``.

    Items are drawn as the columns' validation items are (seed 0: those items), or are the lines of the profile's own
    JSONL files, each with its ``answer``. ``UserError`` where there are no such items, or fewer.
    """
    if task not in zoo.names:
        raise UserError(f"there is no expert '{task}': {nearest(task, zoo.names)}")
    if zoo.profile.calibration.source == "jsonl":
        found = list(itertools.islice(_own(zoo.profile.calibration.files, task, seed), n))
    else:
        asked = [column for column in zoo.plan.protocol.columns.values() if column.group == task]
        if not asked:
            raise UserError(f"no column of {zoo.plan.table.title} asks for what the expert '{task}' has learned")
        streams = [_drawn(column, zoo, seed) for column in asked]
        found = list(itertools.islice((question for turn in zip(*streams) for question in turn), n))
    if len(found) < n:
        raise UserError(f"there are only {len(found)} questions of '{task}', not {n}: ask for fewer")
    return found


def accuracy(live: Live, questions: Sequence[Question]) -> float:
    """The share of right answers, 0 to 1; NOT a table's metric: no harness, no judge, no program run.

    Right is the gold answer, white space at its ends aside; a box that overlaps the gold box by half (IoU); of a
    calculation the final answer (behind ``####`` or in ``\\boxed{}``); of an instruction, a reply that meets every
    demand.
    """
    given = answers(live, questions)
    return sum(question.right(answer) for question, answer in zip(questions, given, strict=True)) / len(questions)


def answers(live: Live, questions: Sequence[Question]) -> list[str]:
    """The live model's greedy answers, in order."""
    longest = max(question.tokens for question in questions)
    images = [question.image for question in questions]
    return live.ask(*(question.prompt for question in questions), images=images, max_new_tokens=longest)


def loss(live: Live, questions: Sequence[Question]) -> float:
    """Mean −ln p of the gold answers' tokens, in nats: Σ over all tokens of all answers / their number.

    Each token is predicted from the question and the *gold* tokens before it (teacher-forced), the end token included.
    """
    prompts, gold = [question.prompt for question in questions], [question.gold for question in questions]
    each = live.losses(prompts, gold, [question.image for question in questions])
    return math.fsum(float(part.double().sum()) for part in each) / sum(len(part) for part in each)


# ------------------------------------------------------------------------------------------------ where items are from
def _drawn(column: columns.Column, zoo: Zoo, seed: int) -> Iterator[Question]:
    """The validation items of a column whose items are drawn; endless of images, and of texts no item twice."""
    if column.subtask is None or column.seed is None:
        raise UserError(f"{column.name}: its items are not drawn here, so there is no gold answer to compare with")
    if backbones.get(zoo.backbone).VISION:
        return _of_images(column, column.subtask, zoo, column.seed + seed)
    return _of_texts(column, column.subtask, column.seed + seed)


def _of_images(column: columns.Column, subtask: str, zoo: Zoo, seed: int) -> Iterator[Question]:
    from emkit.zoo import data, skills  # drawing imports matplotlib

    size = zoo.plan.protocol.image_size
    if size is None:
        raise UserError(f"{column.name}: images are to be drawn, but the protocol's image_size says none are")
    for index in itertools.count():
        item = data.example(subtask, VALIDATION, index, seed, size)
        asked = item.benchmark_qas[index % len(item.benchmark_qas)]
        right, prompt = partial(skills.correct, truth=asked.answer), data.prompt(subtask, asked, zoo.backbone)
        yield Question(prompt, item.image, asked.answer, column.name, right, column.max_new_tokens)


def _of_texts(column: columns.Column, subtask: str, seed: int) -> Iterator[Question]:
    from emkit.zoo import text
    from emkit.zoo.text import skills

    for item in text.distinct(subtask, VALIDATION, seed):
        right = partial(skills.correct, item)
        yield Question(text.prompt(item), None, item.response, column.name, right, column.max_new_tokens)


def _own(files: dict[str, str], task: str, seed: int) -> Iterator[Question]:
    """Lines of one's own JSONL file, in an order that the seed draws; an answer is right if it is the line's."""
    source = JsonlSource(files)
    source.lines(task)  # checks every line
    with open(files[task], encoding="utf-8") as stream:
        lines = [json.loads(line) for line in stream if line.strip()]
    gold = {str(line.get("question", line.get("prompt"))): line.get("answer") for line in lines}
    for item in source.items(task, seed):
        answer = gold[item.questions[0]]
        if not isinstance(answer, str):
            raise UserError(f"{files[task]}: a line has no `answer`, which a notebook compares with")
        yield Question(item.questions[0], item.image, answer, task, partial(_same, answer))


def _same(gold: str, answer: str) -> bool:
    return answer.split() == gold.split()
