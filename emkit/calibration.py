"""Calibration: unlabeled samples of each task, answered by its own expert, with that teacher's states.

The paper takes five to ten unlabeled samples a task; the responses are the experts' own greedy ones (authors' code).
Its samples carry long responses. Where answers are a word long, a *sample* here is a pack of questions (of whole
images) whose responses together have at least ``response_tokens`` tokens, so that five samples still say something.

Experts run once, here. What is kept of them are the middle hidden states and, for exact logits, the final ones with
the expert's own head: d numbers a token, where the logits would be V.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import ModuleType

import torch
from tqdm import tqdm

from emkit.content import side_files_sha256, surroundings
from emkit.engine.logits import Head, headless
from emkit.engine.teacher import TaskSamples, load_samples, save_samples
from emkit.errors import UserError
from emkit.files import atomic_dir, lock, read_kept, sha256_json
from emkit.sequences import Folded, batches, collate, fold
from emkit.sources import Item, JsonlSource, ZooSource
from emkit.task_vectors import TaskVectors

FORMAT = 2  # of the cache; part of its keys
ROUND = 24  # images answered at a time; how many are needed is known only once their responses are counted
TEACHER_TOKENS = 8192  # padded tokens in one pass of a teacher


@dataclass(frozen=True)
class Settings:
    """``samples`` per task of at least ``response_tokens`` tokens each (end tokens included); greedy responses of at
    most ``max_new_tokens``; the hidden state after block ``hidden_layer``; losses over ``tokens`` (response, all)."""

    samples: int
    response_tokens: int
    hidden_layer: int
    tokens: str = "response"
    max_new_tokens: int = 64


@dataclass(frozen=True)
class Calibration:
    """The samples of every task, the block after which hidden states are aligned, and each task's content key."""

    tasks: dict[str, TaskSamples]
    hidden_layer: int
    keys: dict[str, str]


def calibrate(
    backbone: ModuleType,
    base_model: torch.nn.Module,
    task_vectors: TaskVectors,
    source: ZooSource | JsonlSource,
    settings: Settings,
    seed: int,
    cache: Path,
    progress: bool = False,
) -> Calibration:
    """Samples and teacher targets of every expert's task, from ``cache`` where the same were made before.

    ``base_model`` is used for its image features only. A cache entry's key is the content of everything that it
    depends on; one that cannot be read is made again. ``UserError`` for a calibration set that is empty or too small
    for the samples asked.
    """
    tasks, keys = {}, {}
    for task, expert in task_vectors.checkpoints.items():
        keys[task] = sha256_json(
            {
                "format": FORMAT,
                "backbone": backbone.__name__,
                "base": task_vectors.base.sha256(),
                "expert": expert.sha256(),
                "side_files": [side_files_sha256(checkpoint.path) for checkpoint in (task_vectors.base, expert)],
                "surroundings": surroundings(base_model.device),
                "source": source.identity(task),
                "settings": vars(settings),
                "seed": seed,
                **({} if base_model.dtype == torch.float32 else {"dtype": str(base_model.dtype)}),
            }
        )
        folder = Path(cache) / "calibration" / keys[task]
        load = partial(load_samples, heads=Path(cache) / "heads", task=task)
        with lock(folder.with_suffix(".lock")):
            tasks[task] = read_kept(folder, load)
            if tasks[task] is None:
                with _aside(base_model) as device:
                    teacher, processor = backbone.load(expert.path, base_model.dtype, device)
                    maker = _Maker(backbone, base_model, teacher, processor, settings)
                    made = maker.make(task, source.items(task, seed), progress)
                    del maker, teacher
                with atomic_dir(folder) as part:
                    save_samples(made, part, Path(cache) / "heads")
                tasks[task] = load(folder)
    return Calibration(tasks, settings.hidden_layer, keys)


@contextlib.contextmanager
def _aside(model: torch.nn.Module) -> Iterator[str]:
    """Inside, a GPU that holds ``model`` has room for a teacher in its place; yields the device's name.

    After an error the model stays where it is: as long as the error is at hand, so is the teacher.
    """
    device = model.device
    if device.type == "cuda":
        model.to("cpu")
    yield str(device)
    model.to(device)


@dataclass(frozen=True)
class _Maker:
    """Makes one task's samples with its expert, the ``teacher``."""

    backbone: ModuleType
    base_model: torch.nn.Module
    teacher: torch.nn.Module
    processor: object
    settings: Settings

    @cached_property
    def one_tower(self) -> bool:
        """Whether expert and base see images alike, so that features need computing once."""
        towers = [self.backbone.vision_state(model) for model in (self.base_model, self.teacher)]
        return all(torch.equal(tensor.cpu(), towers[1][name].cpu()) for name, tensor in towers[0].items())

    def make(self, task: str, items: Iterator[Item], progress: bool) -> TaskSamples:
        """Ask the expert until its responses fill the samples, then record its states."""
        settings = self.settings
        with headless(self.teacher) as head:
            made = TaskSamples(task, [], [], [], [], [], [], head)
        teacher_features: list[torch.Tensor] = []
        sample, tokens, wanted = 0, 0, settings.samples * settings.response_tokens
        with tqdm(total=wanted, desc=f"calibration {task}", unit="token", disable=not progress) as bar:
            for item, answers in self._answered(items):
                found = self._add(made, teacher_features, item, answers)
                made.sample_of.append(sample)
                tokens += found
                bar.update(min(found, wanted - bar.n))
                if tokens >= settings.response_tokens:
                    sample, tokens = sample + 1, 0
                if sample == settings.samples:
                    break
        if sample < settings.samples:
            filled = f"fills only {sample} samples of {settings.response_tokens} response tokens"
            raise UserError(
                f"the calibration set of task '{task}' {filled if made.sequences else 'is empty'}, {settings.samples} "
                "are wanted: give more questions, or lower calibration.samples or calibration.response_tokens"
            )
        for final, hidden in self._teach(made, teacher_features):
            made.final.append(final)
            made.hidden.append(hidden)
        return made

    def _add(self, made: TaskSamples, teacher_features: list, item: Item, answers: list[str]) -> int:
        """Append one image's sequence; the number of its response tokens."""
        encoded = self.backbone.encode(self.processor, [item.image] * len(answers), list(item.questions), answers)
        folded, lengths = _folded(encoded, self.settings.tokens)
        seen = [] if item.image is None else [encoded[name] for name in self.backbone.VISION]
        seen = [of_rows[: len(of_rows) // len(answers)] for of_rows in seen]
        made.sequences.append(folded)
        features = [
            self.backbone.image_features(model, *(part.to(model.device) for part in seen)).cpu()
            for model in ((self.teacher,) if self.one_tower else (self.teacher, self.base_model))
        ]
        teacher_features.append(features[0])
        made.features.append(features[-1].float())
        rows = zip(item.questions, answers, lengths, strict=True)
        origin = {"subtask": item.subtask, "key": item.key}
        made.rows.append([{**origin, "question": q, "response": a, "tokens": n} for q, a, n in rows])
        return sum(lengths)

    def _answered(self, items: Iterator[Item]) -> Iterator[tuple[Item, list[str]]]:
        """Items with the expert's greedy responses, generated a round of images at a time."""
        while asked := list(itertools.islice(items, ROUND)):
            images = [item.image for item in asked for _ in item.questions]
            questions = [question for item in asked for question in item.questions]
            limit = self.settings.max_new_tokens
            answers = iter(self.backbone.generate(self.teacher, self.processor, images, questions, limit))
            for item in asked:
                yield item, list(itertools.islice(answers, len(item.questions)))

    @torch.no_grad()
    def _teach(self, made: TaskSamples, features: list[torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The teacher's final and middle states, [n, d] each, at each sequence's positions, fp32 on the CPU."""
        sequences = made.sequences
        targets: list = [None] * len(sequences)
        for indices in batches([len(s.ids) for s in sequences], TEACHER_TOKENS):
            with headless(self.teacher):
                output, taken = self._pass([sequences[i] for i in indices], [features[i] for i in indices])
            if all(target is None for target in targets):  # once
                self._check_head(made.head, sequences[indices[0]], features[indices[0]])
            sizes = [int((sequences[i].count > 0).sum()) for i in indices]
            parts = (output.logits.float().cpu().split(sizes), output.hidden[taken].float().cpu().split(sizes))
            for i, final, hidden in zip(indices, *parts, strict=True):
                targets[i] = (final.clone(), hidden.clone())
        return targets

    def _pass(self, sequences: list[Folded], features: list[torch.Tensor]):
        """The teacher's output for some sequences, and the positions bool [B, S] that it is for."""
        device = self.teacher.device
        batch, taken = collate(sequences)
        batch, taken = {name: value.to(device) for name, value in batch.items()}, taken.to(device)
        images, layer = torch.cat(features).to(device, self.teacher.dtype), self.settings.hidden_layer
        return self.backbone.forward(self.teacher, batch, images, hidden_layer=layer, positions=taken), taken

    def _check_head(self, head: Head, sequence: Folded, features: torch.Tensor) -> None:
        """``UserError`` where a model does more to its logits than its head (a cap, a scale)."""
        logits = self._pass([sequence], [features])[0].logits
        with headless(self.teacher):
            found = head.logits(self._pass([sequence], [features])[0].logits)
        if float((found - logits).abs().max()) > 0.02 * float(logits.abs().max()):
            raise UserError(
                f"{type(self.teacher).__name__} does more to its logits than a linear head (a cap or a scale), which "
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
