"""What differs between the zoos of two families of models, and only that: one module a family.

A family's module, called as its backbone, offers

=================  ================================================================================================
``DOMAINS``        expert → the sub-tasks it is trained on (the columns it is meant to lead); ``SUBTASKS``, all of them
``ABOUT``          two sentences about any of its models, for the cards; ``YARDSTICK``: how skills are counted;
                   ``BATCH_OF``: what a batch consists of
``processor``      ``(recipe)`` → processor or tokenizer
``create``         ``(recipe, processor, seed)`` → untrained model (fp32, CPU)
``draw``           ``(recipe, subtask, n, seed)`` → n examples of the training split
``base_set``       ``(recipe, processor, examples)`` → what :func:`train` takes, for a base
``expert_set``     ``(recipe, processor, examples, model)`` → the same, for a fine-tuning of ``model``, where what is
                   not to be trained must no longer require a gradient
``prepare``        ``(recipe, examples, work)`` → what ``pretrain`` needs, or None
``pretrain``       ``(recipe, model, prepared, seed, work, bar, share)``: what comes before a base, if anything does
``train``          ``(model, processor, data, settings, seed, state, shares, progress, share)`` → log
``skills``         ``(recipe, model, processor)`` → percent correct of every sub-task on validation items
=================  ================================================================================================
"""

from __future__ import annotations

import importlib
from types import ModuleType

from emkit.errors import UserError

NAMES = ("internvl", "qwen2_vl", "mistral")


def get(backbone: str) -> ModuleType:
    """The family of a zoo recipe's ``backbone``; ``UserError`` for one that has no zoo."""
    if backbone not in NAMES:
        raise UserError(f"there is no zoo of '{backbone}': choose one of {', '.join(NAMES)}")
    return importlib.import_module(f"emkit.zoo.families.{backbone}")
