"""Calibration: unlabeled samples of each task, answered by its own expert, with that teacher's states.

The paper takes five to ten unlabeled samples a task; the responses are the experts' own greedy ones (authors' code).
Its samples carry long responses. Where answers are a word long, a *sample* here is a pack of questions (of whole
images) whose responses together have at least ``response_tokens`` tokens, so that five samples still say something.

Experts run once, here. What is kept of them are the middle hidden states and, for exact logits, the final ones with
the expert's own head: d numbers a token, where the logits would be V.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from emkit.alignment.samples import TaskSamples, join, load_samples, save_samples
from emkit.alignment.sources import Item, JsonlSource, TextZooSource, ZooSource
from emkit.alignment.teacher import Recording, Teacher
from emkit.backbones.base import Backbone
from emkit.checkpoints import Checkpoint
from emkit.content import side_files_sha256, surroundings
from emkit.errors import UserError
from emkit.files import sha256_json
from emkit.locks import locks_in_turn
from emkit.progress import report, section
from emkit.sealed import read_dir, sealed_dir
from emkit.task_vectors import TaskVectors

FORMAT = 3  # of the cache; part of its keys


@dataclass(frozen=True)
class Calibration:
    """The samples of every task, the block after which hidden states are aligned, and each task's content key."""

    tasks: dict[str, TaskSamples]
    hidden_layer: int
    keys: dict[str, str]

    def made(self, task: str) -> str:
        """What a task's samples depend on, which is not how many there are."""
        return self.keys[task].partition(",")[0]

    @property
    def described(self) -> dict[str, dict[str, int]]:
        """Of each task how many samples, response tokens and sequences there are."""
        return {
            name: {"samples": task.samples, "response_tokens": task.response_tokens, "images": len(task.sequences)}
            for name, task in self.tasks.items()
        }


def calibrate(
    backbone: Backbone,
    base_model: torch.nn.Module,
    task_vectors: TaskVectors,
    source: ZooSource | TextZooSource | JsonlSource,
    settings: Recording,
    seed: int,
    cache: Path,
    progress: bool = False,
) -> Calibration:
    """Samples and teacher targets of every expert's task, each sample from ``cache`` where the same was made before.

    ``base_model`` is used for its image features only. A kept sample's key is the content of everything that it
    depends on, which is not how many there are: more samples add to those kept, a killed run goes on at its first
    missing sample, and an expert is loaded only where a sample is missing. One that cannot be read is made again.
    ``UserError`` for a calibration set that is empty or, unless fewer will do, too small for the samples asked;
    ``base_model`` is then left on the CPU, wherever it was.
    """
    experts = task_vectors.checkpoints
    keys = {task: _key(backbone, base_model, task_vectors, task, source, settings, seed) for task in experts}
    folders = [Path(cache) / "calibration" / key for key in keys.values()]
    locks = [folder.with_suffix(".lock") for folder in folders]
    names, tasks = list(experts), {}

    def wait(index: int) -> None:
        report(f"waiting for another fit, which has the expert {names[index]} answer its samples")

    # rows that need the same samples share the work: each makes those of another task
    with contextlib.closing(locks_in_turn(locks, wait)) as turns:
        for index in turns:
            task, folder = names[index], folders[index]
            with contextlib.ExitStack() as stack:
                made_by = (stack, backbone, base_model, experts[task], settings, source.items(task, seed))
                teacher = partial(_teacher, *made_by)
                tasks[task] = join(_samples(task, folder, Path(cache) / "heads", settings, teacher, progress))
    described = {task: f"{key}, samples {settings.samples}" for task, key in keys.items()}
    return Calibration({task: tasks[task] for task in experts}, settings.hidden_layer, described)


def _key(
    backbone: Backbone,
    base_model: torch.nn.Module,
    task_vectors: TaskVectors,
    task: str,
    source: ZooSource | TextZooSource | JsonlSource,
    settings: Recording,
    seed: int,
) -> str:
    """What a task's samples depend on, which is not how many there are."""
    base, expert = task_vectors.base, task_vectors.checkpoints[task]
    return sha256_json(
        {
            "format": FORMAT,
            "backbone": backbone.name,
            "base": base.sha256(),
            "expert": expert.sha256(),
            "side_files": [side_files_sha256(checkpoint.path) for checkpoint in (base, expert)],
            "surroundings": surroundings(base_model.device, __name__, f"emkit.backbones.{backbone.name}"),
            "source": source.identity(task),
            "settings": {name: value for name, value in vars(settings).items() if name not in ("samples", "fewer")},
            "seed": seed,
            **({} if base_model.dtype == torch.float32 else {"dtype": str(base_model.dtype)}),
            **({} if backbone.asked_as is None else {"asked_as": backbone.asked_as}),
        }
    )


def _samples(
    task: str, folder: Path, heads: Path, settings: Recording, teacher: Callable[[], Teacher], progress: bool
) -> list[TaskSamples]:
    """A task's samples one by one, kept or made; ``teacher`` brings its expert when it is called."""
    found: list[TaskSamples] = []
    images, expert, load = 0, None, partial(load_samples, heads=heads, task=task, known={})
    wanted = settings.samples * settings.response_tokens
    with tqdm(total=wanted, desc=f"calibration {task}", unit="token", disable=not progress) as bar:
        for number in range(settings.samples):
            place = folder / f"{number:04d}"
            sample = read_dir(place, load)
            if sample is None:
                with section(f"calibration {task}, sample {number + 1} of {settings.samples}"):
                    expert = expert or teacher()
                    made = expert.sample(task, images, bar.update)
                if made is None and found and settings.fewer:
                    break
                if made is None:
                    raise UserError(_too_few(task, number, images + expert.images, settings))
                with sealed_dir(place) as part:
                    save_samples(made, part, heads)
                sample = load(place)
            else:
                bar.update(settings.response_tokens)
            found.append(sample)
            images += len(sample.sequences)
    return found


def _too_few(task: str, samples: int, images: int, settings: Recording) -> str:
    filled = f"fills only {samples} samples of {settings.response_tokens} response tokens"
    return (
        f"the calibration set of task '{task}' {filled if images else 'is empty'}, {settings.samples} are wanted: give "
        "more questions, lower calibration.samples or calibration.response_tokens, or set calibration.fewer"
    )


def _teacher(
    stack: contextlib.ExitStack,
    backbone: Backbone,
    base_model: torch.nn.Module,
    expert: Checkpoint,
    settings: Recording,
    items: Iterator[Item],
) -> Teacher:
    """The expert, loaded in the base's place for as long as ``stack`` is open."""
    report("loading the expert")
    device = stack.enter_context(aside(base_model))
    model, processor = backbone.load(expert.path, base_model.dtype, device)
    return Teacher(backbone, base_model, model, processor, settings, items)


@contextlib.contextmanager
def aside(model: torch.nn.Module) -> Iterator[str]:
    """Inside, a GPU that holds ``model`` has room for a teacher in its place; yields the device's name.

    After an error the model stays where it is: as long as the error is at hand, so is the teacher.
    """
    device = model.device
    if device.type == "cuda":
        model.to("cpu")
    yield str(device)
    model.to(device)
