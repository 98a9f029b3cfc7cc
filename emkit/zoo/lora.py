"""Fine-tuning as low-rank adapters (Hu et al. 2021, arXiv 2106.09685) of the merged matrices, by ``peft``.

The paper's Qwen2-VL experts were trained so and published merged: an expert differs from its base in the merged
tensors alone, and by a matrix of low rank in each.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model

from emkit.backbones.base import Backbone


@contextmanager
def adapted(model, backbone: Backbone, settings: dict, seed: int) -> Iterator[None]:
    """Inside, ``model`` has an adapter on each merged matrix, all else frozen; at the end they are merged into it.

    ``settings``: ``rank`` and ``alpha``; an adapter adds alpha / rank · B A. A is drawn by ``seed``, B starts at zero.
    """
    config = _config(model, backbone, settings, seed)
    wrapped = get_peft_model(model, config)  # puts the adapters into the model itself
    yield
    wrapped.merge_and_unload()


def injected(model, backbone: Backbone, settings: dict, seed: int) -> None:
    """Put such adapters into ``model``, which stays what it was but for them; all else is frozen.

    ``model.peft_config["default"]`` is their configuration.
    """
    config = _config(model, backbone, settings, seed)
    inject_adapter_in_model(config, model)
    model.peft_config = {"default": config}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)


def _config(model, backbone: Backbone, settings: dict, seed: int) -> LoraConfig:
    merged = backbone.merged_names([name for name, _ in model.named_parameters()])
    torch.manual_seed(seed)
    return LoraConfig(
        r=settings["rank"],
        lora_alpha=settings["alpha"],
        lora_dropout=0.0,
        bias="none",
        target_modules=[name.removesuffix(".weight") for name in merged],
    )
