"""An expert as teacher: it answers unlabeled questions, and its states on its own answers are recorded."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

from emkit.alignment.heads import Head, headless
from emkit.alignment.samples import TaskSamples
from emkit.alignment.sequences import Folded, batches, collate, fold
from emkit.alignment.sources import Item
from emkit.backbones.base import Backbone
from emkit.errors import UserError
from emkit.progress import report

ROUND = 24  # images answered at a time; how many are needed is known only once their responses are counted
TEACHER_TOKENS = 8192  # padded tokens in one pass of a teacher


@dataclass(frozen=True)
class Recording:
    """``samples`` per task of at least ``response_tokens`` tokens each (end tokens included); greedy responses of at
    most ``max_new_tokens``; the hidden state after block ``hidden_layer``; losses over ``tokens`` (response, all).
    ``fewer``: whether a task that has not so many samples gives all it has."""

    samples: int
    response_tokens: int
    hidden_layer: int
    tokens: str = "response"
    max_new_tokens: int = 64
    fewer: bool = False


class Answered(NamedTuple):
    """An item with the expert's response to each of its questions, and what its tower makes of the image."""

    item: Item
    answers: list[str]
    seen: torch.Tensor


class Teacher:
    """One task's expert, which makes its samples.

    What a sample is does not depend on how many are made or on where making them began: images are answered in fixed
    rounds of :data:`ROUND`, and states are recorded sample by sample. ``base_model`` gives image features only.
    """

    def __init__(
        self,
        backbone: Backbone,
        base_model: torch.nn.Module,
        model: torch.nn.Module,
        processor: object,
        settings: Recording,
        items: Iterator[Item],
    ):
        self.backbone, self.base_model, self.model = backbone, base_model, model
        self.processor, self.settings = processor, settings
        self._items, self._number = items, -1
        self._round: list[Item] = []
        self._answers: list[list[str]] | None = None
        self._seen: list[torch.Tensor] = []
        with headless(model) as head:
            self.head = head
        self._head_checked = False
        self.images = 0  # how many of the source have been looked at here

    def sample(self, task: str, first: int, tell: Callable[[int], object] = lambda tokens: None) -> TaskSamples | None:
        """The sample that begins with image ``first`` of the source; None where the source ends before it is full.

        ``first`` may only grow from call to call. ``tell`` gets the number of response tokens as they come.
        """
        made = TaskSamples(task, [], [], [], [], [], [], self.head)
        features: list[torch.Tensor] = []
        tokens = 0
        while tokens < self.settings.response_tokens:
            answered = self._answered(first + len(made.sequences))
            if answered is None:
                return None
            found = self._add(made, features, answered)
            tell(min(found, self.settings.response_tokens - tokens))
            tokens += found
        for final, hidden in self._states(made, features):
            made.final.append(final)
            made.hidden.append(hidden)
        return made

    def _answered(self, index: int) -> Answered | None:
        """Image ``index`` with the expert's greedy responses; None where there are not so many."""
        number, place = divmod(index, ROUND)
        assert number >= self._number, "the source is read forwards only"
        while self._number < number:
            self._round, self._answers = list(itertools.islice(self._items, ROUND)), None
            self._number += 1
        if place >= len(self._round):
            return None
        if self._answers is None:
            self._seen = [self._features(self.model, item) for item in self._round]
            self._answers = self._generated()
        self.images = index + 1
        return Answered(self._round[place], self._answers[place], self._seen[place])

    def _generated(self) -> list[list[str]]:
        """The greedy responses about each image of the round; an image is looked at once for all of its questions."""
        asked = [(place, question) for place, item in enumerate(self._round) for question in item.questions]
        found = iter(
            self.backbone.generate(
                self.model,
                self.processor,
                [self._round[place].image for place, _ in asked],
                [question for _, question in asked],
                self.settings.max_new_tokens,
                features=lambda start, stop: torch.cat([self._seen[place] for place, _ in asked[start:stop]]),
            )
        )
        return [list(itertools.islice(found, len(item.questions))) for item in self._round]

    def _features(self, model: torch.nn.Module, item: Item) -> torch.Tensor:
        """What ``model``'s tower makes of an item's image; empty where it has none."""
        if item.image is None:
            return self.backbone.image_features(model)
        encoded = self.backbone.encode(self.processor, [item.image], [""])
        return self.backbone.image_features(model, *(encoded[name].to(model.device) for name in self.backbone.VISION))

    @cached_property
    def one_tower(self) -> bool:
        """Whether expert and base see images alike, so that features need computing once."""
        towers = [self.backbone.vision_state(model) for model in (self.base_model, self.model)]
        return all(torch.equal(tensor.cpu(), towers[1][name].cpu()) for name, tensor in towers[0].items())

    def _add(self, made: TaskSamples, teacher_features: list, answered: Answered) -> int:
        """Append one image's sequence; returns the number of its response tokens."""
        item, answers, seen = answered
        encoded = self.backbone.encode(self.processor, [item.image] * len(answers), list(item.questions), answers)
        folded, lengths = _folded(encoded, self.settings.tokens)
        made.sequences.append(folded)
        made.sample_of.append(0)
        teacher_features.append(seen.cpu())
        of_base = seen if self.one_tower else self._features(self.base_model, item)
        made.features.append(of_base.float().cpu())
        rows = zip(item.questions, answers, lengths, strict=True)
        origin = {"subtask": item.subtask, "key": item.key}
        made.rows.append([{**origin, "question": q, "response": a, "tokens": n} for q, a, n in rows])
        return sum(lengths)

    @torch.no_grad()
    def _states(self, made: TaskSamples, features: list[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The teacher's final and middle states, [n, d] each, at each sequence's positions, fp32 on the CPU."""
        sequences, done = made.sequences, 0
        targets: list = [None] * len(sequences)
        for indices in batches([len(s.ids) for s in sequences], TEACHER_TOKENS):
            report("teacher's states", done, len(sequences))
            done += len(indices)
            with headless(self.model):
                output, taken = self._pass([sequences[i] for i in indices], [features[i] for i in indices])
            if not self._head_checked:
                self._check_head(made.head, sequences[indices[0]], features[indices[0]])
                self._head_checked = True
            sizes = [int((sequences[i].count > 0).sum()) for i in indices]
            parts = (output.logits.float().cpu().split(sizes), output.hidden[taken].float().cpu().split(sizes))
            for i, final, hidden in zip(indices, *parts, strict=True):
                targets[i] = (final.clone(), hidden.clone())
        return targets

    def _pass(self, sequences: list[Folded], features: list[torch.Tensor]):
        """The teacher's output for some sequences, and the positions bool [B, S] that it is for."""
        device = self.model.device
        batch, taken = collate(sequences)
        batch, taken = {name: value.to(device) for name, value in batch.items()}, taken.to(device)
        images, layer = torch.cat(features).to(device, self.model.dtype), self.settings.hidden_layer
        return self.backbone.forward(self.model, batch, images, hidden_layer=layer, positions=taken), taken

    def _check_head(self, head: Head, sequence: Folded, features: torch.Tensor) -> None:
        """``UserError`` where a model does more to its logits than its head (a cap, a scale)."""
        logits = self._pass([sequence], [features])[0].logits
        with headless(self.model):
            found = head.logits(self._pass([sequence], [features])[0].logits)
        if float((found - logits).abs().max()) > 0.02 * float(logits.abs().max()):
            raise UserError(
                f"{type(self.model).__name__} does more to its logits than a linear head (a cap or a scale), which "
                "learned methods do not know: merge it by one that needs no calibration"
            )


def _folded(encoded: dict, tokens: str) -> tuple[Folded, list[int]]:
    """The rows of one image as one sequence, and each row's number of response tokens."""
    lengths = encoded["attention_mask"].sum(1).tolist()
    rows = [ids[:length].numpy() for ids, length in zip(encoded["input_ids"], lengths, strict=True)]
    responses = encoded["response_mask"].sum(1).tolist()
    positions = encoded.get("position_ids")
    if positions is not None:  # the backbone has its own, [3, B, S]
        positions = [positions[:, row, :length].numpy() for row, length in enumerate(lengths)]
    return fold(rows, responses, tokens, positions), responses
