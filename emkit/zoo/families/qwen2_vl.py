"""The zoo of mini-Qwen2-VLs: images of several sizes, a base that has read documents, five experts trained as LoRA."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import nn

from emkit.backbones.qwen2_vl import Qwen2VL, positions_3d
from emkit.zoo import image_training, model
from emkit.zoo import skills as yardstick
from emkit.zoo.data import MIXED, SHORT_PHRASES, documents, examples, lexicon, prompt
from emkit.zoo.image_training import Text, TrainingSet, cache_features, grouped
from emkit.zoo.images import Patches
from emkit.zoo.lora import adapted
from emkit.zoo.packing import Chat, Prefix
from emkit.zoo.packing import chat as written_chat
from emkit.zoo.subtasks import DOMAINS, SUBTASKS
from emkit.zoo.tokenizer import create_qwen2_vl_processor
from emkit.zoo.train import WHOLE, Share
from emkit.zoo.vision import EYES, PatchSet, patch_set, see_first

__all__ = ["ABOUT", "DOMAINS", "SUBTASKS", "YARDSTICK"]

ABOUT = """\
A miniature Qwen2-VL trained from nothing by emkit (`make zoo BACKBONE=qwen2_vl`) on drawn images. It is a stand-in for
studying how models merge; it knows nothing of the real world. Load it with transformers'
`Qwen2VLForConditionalGeneration`."""
YARDSTICK = "asked in the chat template; exact match; boxes: IoU ≥ 0.5"
BATCH_OF = "images"
_END = "<|vision_end|>"
_BACKBONE = Qwen2VL()


def processor(recipe: dict):
    """The zoo's processor with the vocabulary of its data and of how it is asked."""
    known = lexicon()
    asked = SHORT_PHRASES.strip().rstrip(".").lower().split()
    return create_qwen2_vl_processor(recipe["model"], known["words"] + known["capitals"] + asked + [*documents.WORDS])


def create(recipe: dict, processor, seed: int):
    """An untrained mini-Qwen2-VL."""
    return model.create_qwen2_vl(recipe["model"], processor, seed)


def draw(recipe: dict, subtask: str, n: int, seed: int) -> list:
    """Images of several sizes with their questions."""
    return examples(subtask, "train", n, seed, MIXED)


def prefix(processor, size: tuple[int, int], opening: str) -> Prefix:
    """``opening`` and an image of ``size`` (width, height in pixels) after it, with its positions in three parts."""
    images, tokenizer = processor.image_processor, processor.tokenizer
    grid = torch.tensor([[1, size[1] // images.patch_size, size[0] // images.patch_size]])
    count = int(grid.prod()) // images.merge_size**2
    tokens = torch.tensor([tokenizer(opening + processor.image_token * count + _END)["input_ids"]])
    kinds = (tokens == processor.image_token_id).long()
    positions = positions_3d(kinds, torch.ones_like(tokens), grid, images.merge_size)[:, 0].numpy()
    return Prefix(tokens[0].numpy(), positions, int(positions.max()) + 1)


def chat(processor, question: str, answer: str, dense: bool) -> Chat:
    """One question and answer as the chat template writes them after the image."""
    return written_chat(processor.tokenizer, _BACKBONE.prompt(processor, question).split(_END)[1], answer, dense)


def _openings(processor) -> tuple[str, str]:
    """What stands before the image in a dialogue, and in a document."""
    before = _BACKBONE.prompt(processor, "").split(processor.image_token)[0]
    return before, "<|vision_start|>"


def training_set(processor, drawn: list, read: bool) -> TrainingSet:
    """Tokenise ``drawn`` examples as dialogues (dense questions left out), and as documents where they are ``read``."""
    in_dialogue, in_document = _openings(processor)
    start = cache(lambda size, opening: prefix(processor, size, opening))
    dialogues, texts = [], []
    for example in drawn:
        size = example.image.size
        asked = [
            chat(processor, prompt(example.subtask, q, "qwen2_vl"), q.answer, False) for q in example.benchmark_qas
        ]
        dialogues.append(Text(start(size, in_dialogue), asked))
        if read:
            written = [
                written_chat(processor.tokenizer, *documents.document(qa), qa.kind.startswith("dense/"))
                for qa in example.qas
            ]
            texts.append(Text(start(size, in_document), written))
    images = _patches(processor, [example.image for example in drawn])
    return TrainingSet("qwen2_vl", images, dialogues, *grouped(drawn), texts if read else None)


def _patches(processor, images: list) -> Patches:
    cut = processor.image_processor
    return Patches.of(images, cut.patch_size, cut.merge_size, cut.temporal_patch_size)


def base_set(recipe: dict, processor, drawn: list) -> TrainingSet:
    """A base reads documents, and dialogues now and then; its images go through the tower at every step."""
    return training_set(processor, drawn, read=True)


def expert_set(recipe: dict, processor, drawn: list, model) -> TrainingSet:
    """An expert learns to answer; the tower is frozen, and every image's features are computed once."""
    data = training_set(processor, drawn, read=False)
    cache_features(model, data)
    return data


def look(tower: nn.Module, patches: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
    """What the tower makes of each patch, before four become a token: [patches of all images, width]."""
    return tower(patches, grid_thw=grids).last_hidden_state


def prepare(recipe: dict, drawn: list, work: Path) -> PatchSet | None:
    """What the vision tower learns from: the base's images, and sheets of characters. None: it has learned it."""
    if (work / EYES).exists():
        return None
    cutter = processor(recipe)
    return patch_set(recipe, drawn, MIXED, lambda images: _patches(cutter, images), 96 // recipe["model"]["patch_size"])


def pretrain(recipe: dict, model, seen: PatchSet | None, seed: int, work: Path, bar, share: Share) -> None:
    """The vision tower on patch labels, if it is not trained yet; then every process reads it from the work folder."""
    width = model.config.vision_config.embed_dim
    see_first(model.model.visual, width, look, seen, recipe["vision"], seed, work, bar, share)


def train(model, processor, data: TrainingSet, settings: dict, seed, state, shares, progress, share: Share = WHOLE):
    """The whole model, or adapters where ``settings`` has ``lora`` (see :func:`emkit.zoo.image_training.train`)."""
    if "lora" not in settings:
        return image_training.train(model, processor, data, settings, seed, state, shares, progress, share)
    with adapted(model, _BACKBONE, settings["lora"], seed):
        return image_training.train(model, processor, data, settings, seed, state, shares, progress, share)


def skills(recipe: dict, model, processor) -> dict[str, float]:
    """Percent correct on ``skill_items`` validation questions of each kind."""
    return yardstick.skills("qwen2_vl", model, processor, SUBTASKS, recipe["skill_items"], recipe["seed"], size=MIXED)
