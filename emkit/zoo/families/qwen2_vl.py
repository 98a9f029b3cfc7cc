"""The zoo of mini-Qwen2-VLs: images of several sizes, a base that has read documents, five experts trained as LoRA."""

from __future__ import annotations

from functools import cache

import torch
from torch import nn

from emkit.backbones.qwen2_vl import Qwen2VL, positions_3d
from emkit.zoo import model
from emkit.zoo.data import MIXED, SHORT_PHRASES, documents, lexicon, prompt
from emkit.zoo.families.seeing import SeeingFamily
from emkit.zoo.image_training import Text, TrainingSet, grouped
from emkit.zoo.images import Patches
from emkit.zoo.packing import Prefix, chat
from emkit.zoo.tokenizer import create_qwen2_vl_processor


class Zoo(SeeingFamily):
    ABOUT = """\
A miniature Qwen2-VL trained from nothing by emkit (`make zoo BACKBONE=qwen2_vl`) on drawn images. It is a stand-in for
studying how models merge; it knows nothing of the real world. Load it with transformers'
`Qwen2VLForConditionalGeneration`."""
    YARDSTICK = "asked in the chat template; exact match; boxes: IoU ≥ 0.5"
    SIZE, END = MIXED, "<|vision_end|>"
    backbone = Qwen2VL()

    def processor(self, recipe: dict):
        """The zoo's processor with the vocabulary of its data and of how it is asked."""
        known = lexicon()
        asked = SHORT_PHRASES.strip().rstrip(".").lower().split()
        words = known["words"] + known["capitals"] + asked + [*documents.WORDS]
        return create_qwen2_vl_processor(recipe["model"], words)

    def create(self, recipe: dict, processor, seed: int):
        return model.create_qwen2_vl(recipe["model"], processor, seed)

    def prefix(self, processor, size: tuple[int, int], opening: str) -> Prefix:
        """``opening`` and an image of ``size`` (width, height in pixels) after it; positions have three parts."""
        images, tokenizer = processor.image_processor, processor.tokenizer
        grid = torch.tensor([[1, size[1] // images.patch_size, size[0] // images.patch_size]])
        count = int(grid.prod()) // images.merge_size**2
        tokens = torch.tensor([tokenizer(opening + processor.image_token * count + self.END)["input_ids"]])
        kinds = (tokens == processor.image_token_id).long()
        positions = positions_3d(kinds, torch.ones_like(tokens), grid, images.merge_size)[:, 0].numpy()
        return Prefix(tokens[0].numpy(), positions, int(positions.max()) + 1)

    def training_set(self, processor, drawn: list, base: bool) -> TrainingSet:
        """Dialogues (dense questions left out), and documents where a ``base`` reads them."""
        in_dialogue = self.backbone.prompt(processor, "").split(processor.image_token)[0]
        start = cache(lambda size, opening: self.prefix(processor, size, opening))
        dialogues, texts = [], []
        for example in drawn:
            size, subtask = example.image.size, example.subtask
            asked = [
                self.chat(processor, prompt(subtask, qa, "qwen2_vl"), qa.answer, False) for qa in example.benchmark_qas
            ]
            dialogues.append(Text(start(size, in_dialogue), asked))
            if base:
                written = [
                    chat(processor.tokenizer, *documents.document(qa), qa.kind.startswith("dense/"))
                    for qa in example.qas
                ]
                texts.append(Text(start(size, "<|vision_start|>"), written))
        images = self.images(processor, [example.image for example in drawn])
        return TrainingSet("qwen2_vl", images, dialogues, *grouped(drawn), texts if base else None)

    def images(self, processor, pictures: list) -> Patches:
        cut = processor.image_processor
        return Patches.of(pictures, cut.patch_size, cut.merge_size, cut.temporal_patch_size)

    def look(self, tower: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
        """Before four of them become a token."""
        patches, grids = inputs
        return tower(patches, grid_thw=grids).last_hidden_state


FAMILY = Zoo()
