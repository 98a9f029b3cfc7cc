"""The zoo of mini-Mistrals: a base that has read documents, and three experts that answer."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import MistralConfig, MistralForCausalLM

from emkit.zoo.text import DOMAINS, SUBTASKS, Item, items, tokenizer
from emkit.zoo.text import skills as yardstick
from emkit.zoo.text.training import TextSet, text_set, train
from emkit.zoo.train import Share

__all__ = ["ABOUT", "DOMAINS", "SUBTASKS", "YARDSTICK", "train"]

ABOUT = """\
A miniature Mistral trained from nothing by emkit (`make zoo BACKBONE=mistral`) on made-up text. It is a stand-in for
studying how models merge; it knows nothing of the real world. Load it with transformers' `AutoModelForCausalLM`."""
YARDSTICK = "instructions: every demand met; problems: the final answer; code: letter by letter"
BATCH_OF = "texts"


def processor(recipe: dict):
    """The zoo's tokenizer, learned from ``tokenizer.examples`` items a sub-task (of a seed of their own)."""
    settings = recipe["tokenizer"]
    learned = [i for s in SUBTASKS for i in items(s, "train", settings["examples"], recipe["data_seed"] + 99)]
    return tokenizer.create(learned, settings["vocabulary"])


def create(recipe: dict, processor, seed: int) -> MistralForCausalLM:
    """A randomly initialised transformers ``MistralForCausalLM`` (fp32, CPU) with the recipe's ``model`` settings."""
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


def draw(recipe: dict, subtask: str, n: int, seed: int) -> list[Item]:
    """Items with prompt, response and document."""
    return items(subtask, "train", n, seed)


def base_set(recipe: dict, processor, drawn: list[Item]) -> TextSet:
    """A base reads documents, and dialogues now and then."""
    return text_set(processor, drawn, read=True)


def expert_set(recipe: dict, processor, drawn: list[Item], model) -> TextSet:
    """An expert learns to answer."""
    return text_set(processor, drawn, read=False)


def prepare(recipe: dict, drawn: list[Item], work: Path) -> None:
    """Nothing comes before the base."""


def pretrain(recipe: dict, model, prepared: None, seed: int, work: Path, bar, share: Share) -> None:
    """Nothing comes before the base."""


def skills(recipe: dict, model, processor) -> dict[str, float]:
    """Percent correct on ``skill_items`` validation items of each sub-task."""
    return yardstick.skills(model, processor, SUBTASKS, recipe["skill_items"], recipe["seed"])
