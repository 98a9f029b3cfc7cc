"""The zoo of mini-InternVLs: drawn images, a vision tower that learns to see first, five experts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from emkit.backbones.internvl import InternVL
from emkit.zoo import model
from emkit.zoo import skills as yardstick
from emkit.zoo.data import examples, lexicon, prompt
from emkit.zoo.image_training import Text, TrainingSet, cache_features, grouped, train
from emkit.zoo.images import Squares
from emkit.zoo.packing import Chat, Prefix, text_prefix
from emkit.zoo.packing import chat as written_chat
from emkit.zoo.subtasks import DOMAINS, SUBTASKS
from emkit.zoo.tokenizer import create_processor
from emkit.zoo.train import Share
from emkit.zoo.vision import EYES, PatchSet, patch_set, see_first

__all__ = ["ABOUT", "DOMAINS", "SUBTASKS", "YARDSTICK", "train"]

ABOUT = """\
A miniature InternVL trained from nothing by emkit (`make zoo`) on drawn images. It is a stand-in for studying how
models merge; it knows nothing of the real world. Load it with transformers' `AutoModelForImageTextToText`."""
YARDSTICK = "exact match; boxes: IoU ≥ 0.5"
BATCH_OF = "images"
_BACKBONE = InternVL()


def processor(recipe: dict):
    """The zoo's processor with the vocabulary of its data."""
    known = lexicon()
    return create_processor(recipe["model"], known["words"] + known["capitals"])


def create(recipe: dict, processor, seed: int):
    """An untrained mini-InternVL."""
    return model.create(recipe["model"], processor, seed)


def draw(recipe: dict, subtask: str, n: int, seed: int) -> list:
    """Images with their questions."""
    return examples(subtask, "train", n, seed, recipe["model"]["image_size"])


def prefix(processor) -> Prefix:
    """From the turn's start to the newline after the image."""
    text = _BACKBONE.prompt(processor, "").split(processor.image_token)
    image = processor.start_image_token + processor.image_token * processor.image_seq_length + processor.end_image_token
    return text_prefix(np.array(processor.tokenizer(text[0] + image + "\n")["input_ids"]))


def chat(processor, question: str, answer: str, dense: bool) -> Chat:
    """One question and answer as the chat template writes them after the image."""
    after_image = _BACKBONE.prompt(processor, question).split(processor.image_token + "\n")[1]
    return written_chat(processor.tokenizer, after_image, answer, dense)


def training_set(processor, drawn: list, dense: bool) -> TrainingSet:
    """Tokenise ``drawn`` examples; dense questions are left out unless ``dense``."""
    start = prefix(processor)
    dialogues = [
        Text(
            start,
            [
                chat(processor, prompt(example.subtask, qa), qa.answer, qa.kind.startswith("dense/"))
                for qa in (example.qas if dense else example.benchmark_qas)
            ],
        )
        for example in drawn
    ]
    return TrainingSet("internvl", Squares.of([example.image for example in drawn]), dialogues, *grouped(drawn))


def base_set(recipe: dict, processor, drawn: list) -> TrainingSet:
    """A base also learns from dense questions, and its images go through the tower at every step."""
    return training_set(processor, drawn, dense=True)


def expert_set(recipe: dict, processor, drawn: list, model) -> TrainingSet:
    """An expert's tower is frozen: every image's features are computed once."""
    data = training_set(processor, drawn, dense=False)
    model.model.vision_tower.requires_grad_(False)
    cache_features(model, data)
    return data


def look(tower: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """What the tower makes of each patch, row by row: [patches of all images, width]."""
    return tower(pixel_values=pixels).last_hidden_state[:, 1:].flatten(0, 1)


def prepare(recipe: dict, drawn: list, work: Path) -> PatchSet | None:
    """What the vision tower learns from: the base's images, and sheets of characters. None: it has learned it."""
    if (work / EYES).exists():
        return None
    side = recipe["model"]["image_size"]
    return patch_set(recipe, drawn, side, Squares.of, side // recipe["model"]["patch_size"])


def pretrain(recipe: dict, model, seen: PatchSet | None, seed: int, work: Path, bar, share: Share) -> None:
    """The vision tower on patch labels, if it is not trained yet; then every process reads it from the work folder."""
    width = model.config.vision_config.hidden_size
    see_first(model.model.vision_tower, width, look, seen, recipe["vision"], seed, work, bar, share)


def skills(recipe: dict, model, processor) -> dict[str, float]:
    """Percent correct on ``skill_items`` validation questions of each kind."""
    return yardstick.skills("internvl", model, processor, SUBTASKS, recipe["skill_items"], recipe["seed"])
