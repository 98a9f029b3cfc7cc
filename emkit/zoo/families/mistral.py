"""The zoo of mini-Mistrals: a base that has read documents, and three experts that answer."""

from __future__ import annotations

import torch
from transformers import MistralConfig, MistralForCausalLM

from emkit.zoo.families import FromNothing
from emkit.zoo.text import DOMAINS, SUBTASKS, Item, items, skills, tokenizer, training
from emkit.zoo.text.training import TextSet, text_set
from emkit.zoo.train import WHOLE


class Zoo(FromNothing):
    DOMAINS, SUBTASKS = DOMAINS, SUBTASKS
    ABOUT = """\
A miniature Mistral trained from nothing by emkit (`make zoo BACKBONE=mistral`) on made-up text. It is a stand-in for
studying how models merge; it knows nothing of the real world. Load it with transformers' `AutoModelForCausalLM`."""
    YARDSTICK = "instructions: every demand met; problems: the final answer; code: letter by letter"
    BATCH_OF = "texts"

    def processor(self, recipe: dict):
        """The zoo's tokenizer, learned from ``tokenizer.examples`` items a sub-task (of a seed of their own)."""
        settings = recipe["tokenizer"]
        learned = [i for s in SUBTASKS for i in items(s, "train", settings["examples"], recipe["data_seed"] + 99)]
        return tokenizer.create(learned, settings["vocabulary"])

    def create(self, recipe: dict, processor, seed: int) -> MistralForCausalLM:
        """A randomly initialised ``MistralForCausalLM`` with the recipe's ``model`` settings."""
        config = MistralConfig(
            vocab_size=len(processor),
            tie_word_embeddings=True,
            bos_token_id=processor.bos_token_id,
            eos_token_id=processor.eos_token_id,
            pad_token_id=processor.pad_token_id,
            **recipe["model"],
        )
        torch.manual_seed(seed)
        return MistralForCausalLM(config)

    def draw(self, recipe: dict, subtask: str, n: int, seed: int) -> list[Item]:
        return items(subtask, "train", n, seed)

    def base_set(self, recipe: dict, processor, drawn: list[Item]) -> TextSet:
        """A base reads documents, and dialogues now and then."""
        return text_set(processor, drawn, read=True)

    def expert_set(self, recipe: dict, processor, drawn: list[Item], model) -> TextSet:
        """An expert learns to answer."""
        return text_set(processor, drawn, read=False)

    def train(self, model, processor, data, settings: dict, seed, state, shares, progress, share=WHOLE) -> list[dict]:
        return training.train(model, processor, data, settings, seed, state, shares, progress, share)

    def skills(self, recipe: dict, model, processor) -> dict[str, float]:
        return skills.skills(model, processor, SUBTASKS, recipe["skill_items"], recipe["seed"])


FAMILY = Zoo()
