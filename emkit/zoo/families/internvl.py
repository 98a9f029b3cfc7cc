"""The zoo of mini-InternVLs: square images, of which a base also learns by dense questions."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from emkit.backbones.internvl import InternVL
from emkit.zoo import model
from emkit.zoo.data import lexicon, prompt
from emkit.zoo.families.seeing import SeeingFamily
from emkit.zoo.image_training import Text, TrainingSet, grouped
from emkit.zoo.images import Squares
from emkit.zoo.packing import Prefix, text_prefix
from emkit.zoo.tokenizer import IMAGE_TOKEN, create_processor


class Zoo(SeeingFamily):
    ABOUT = """\
A miniature InternVL trained from nothing by emkit (`make zoo`) on drawn images. It is a stand-in for studying how
models merge; it knows nothing of the real world. Load it with transformers' `AutoModelForImageTextToText`."""
    YARDSTICK = "exact match; boxes: IoU ≥ 0.5"
    SIZE, END = 96, IMAGE_TOKEN + "\n"
    backbone = InternVL()

    def processor(self, recipe: dict):
        """The zoo's processor with the vocabulary of its data."""
        known = lexicon()
        return create_processor(recipe["model"], known["words"] + known["capitals"])

    def create(self, recipe: dict, processor, seed: int):
        return model.create(recipe["model"], processor, seed)

    def prefix(self, processor) -> Prefix:
        """From the turn's start to the newline after the image."""
        text = self.backbone.prompt(processor, "").split(processor.image_token)
        image = processor.image_token * processor.image_seq_length
        image = processor.start_image_token + image + processor.end_image_token
        return text_prefix(np.array(processor.tokenizer(text[0] + image + "\n")["input_ids"]))

    def training_set(self, processor, drawn: list, base: bool) -> TrainingSet:
        """Dense questions are a base's alone."""
        start, dialogues = self.prefix(processor), []
        for example in drawn:
            asked = example.qas if base else example.benchmark_qas
            chats = [
                self.chat(processor, prompt(example.subtask, qa), qa.answer, qa.kind.startswith("dense/"))
                for qa in asked
            ]
            dialogues.append(Text(start, chats))
        images = self.images(processor, [example.image for example in drawn])
        return TrainingSet("internvl", images, dialogues, *grouped(drawn))

    def images(self, processor, pictures: list) -> Squares:
        return Squares.of(pictures)

    def look(self, tower: nn.Module, *inputs: torch.Tensor) -> torch.Tensor:
        """Row by row."""
        return tower(pixel_values=inputs[0]).last_hidden_state[:, 1:].flatten(0, 1)


FAMILY = Zoo()
