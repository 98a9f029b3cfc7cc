"""What the families that see have in common: drawn images, a vision tower that learns to see first, five experts."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from pathlib import Path

import torch
from torch import nn

from emkit.backbones.images import ImageBackbone
from emkit.zoo import image_training, skills
from emkit.zoo.data import examples
from emkit.zoo.families import FromNothing
from emkit.zoo.image_training import TrainingSet, cache_features
from emkit.zoo.images import Patches, Squares
from emkit.zoo.lora import adapted
from emkit.zoo.packing import Chat, chat
from emkit.zoo.subtasks import DOMAINS, SUBTASKS
from emkit.zoo.train import WHOLE, Share
from emkit.zoo.vision import EYES, PatchSet, patch_set, see_first


class SeeingFamily(FromNothing):
    """``backbone``: how its models are run; ``SIZE`` of its images (see :func:`emkit.zoo.data.example`); ``END``: what
    stands between an image and its question in the chat template."""

    DOMAINS, SUBTASKS, BATCH_OF = DOMAINS, SUBTASKS, "images"
    SIZE: int | str
    END: str
    backbone: ImageBackbone

    @abstractmethod
    def training_set(self, processor, drawn: list, base: bool) -> TrainingSet:
        """Tokenise ``drawn`` examples, with all that a ``base`` learns from or with dialogues alone."""

    @abstractmethod
    def images(self, processor, pictures: list) -> Squares | Patches:
        """Pictures as the tower takes them."""

    @abstractmethod
    def look(self, tower: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
        """What the tower makes of each patch: [patches of all images, width]."""

    def draw(self, recipe: dict, subtask: str, n: int, seed: int) -> list:
        return examples(subtask, "train", n, seed, self.SIZE)

    def chat(self, processor, question: str, answer: str, dense: bool) -> Chat:
        """One question and answer as the chat template writes them after the image."""
        after_image = self.backbone.prompt(processor, question).split(self.END)[1]
        return chat(processor.tokenizer, after_image, answer, dense)

    def base_set(self, recipe: dict, processor, drawn: list) -> TrainingSet:
        return self.training_set(processor, drawn, base=True)

    def expert_set(self, recipe: dict, processor, drawn: list, model) -> TrainingSet:
        """An expert's tower is frozen: every image's features are computed once."""
        data = self.training_set(processor, drawn, base=False)
        self.backbone.tower(model).requires_grad_(False)
        cache_features(model, data)
        return data

    def prepare(self, recipe: dict, drawn: list, work: Path) -> PatchSet | None:
        """What the vision tower learns from: the base's images, and sheets of characters. None: it has learned it."""
        if (work / EYES).exists():
            return None
        cutter = self.processor(recipe)
        return patch_set(recipe, drawn, self.SIZE, lambda pictures: self.images(cutter, pictures))

    def pretrain(
        self, recipe: dict, model, prepared: PatchSet | None, seed: int, work: Path, bar, share: Share
    ) -> None:
        """The vision tower on patch labels, if it is not trained yet; every process reads it from the work folder."""
        see_first(self.backbone.tower(model), self.look, prepared, recipe["vision"], seed, work, bar, share)

    def train(self, model, processor, data, settings: dict, seed, state, shares, progress, share=WHOLE) -> list[dict]:
        """The whole model, or adapters where ``settings`` has ``lora`` (see :func:`emkit.zoo.image_training.train`)."""
        lora = settings.get("lora")
        with adapted(model, self.backbone, lora, seed) if lora else contextlib.nullcontext():
            return image_training.train(model, processor, data, settings, seed, state, shares, progress, share)

    def skills(self, recipe: dict, model, processor) -> dict[str, float]:
        asked = (SUBTASKS, recipe["skill_items"], recipe["seed"])
        return skills.skills(self.backbone.name, model, processor, *asked, size=self.SIZE)
