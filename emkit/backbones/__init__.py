"""Families of models, one file each: a file here is a backbone, by its name, and nothing else lists it.

=========== ======================================================== ===========================================
name        models                                                   merged tensors
=========== ======================================================== ===========================================
internvl    InternVL2.5 and its miniature                            7 matrices a block, the projector's 3
qwen2_vl    Qwen2-VL                                                 7 matrices a block
mistral     Mistral, and what else has the Llama layout              7 matrices a block
causal_lm   any transformers causal language model of blocks         every weight matrix inside a block
=========== ======================================================== ===========================================

All other tensors (embeddings, heads, norms, biases, vision towers) stay at the base's values. What a backbone offers
and what all share is :class:`emkit.backbones.base.Backbone`; what those that see share is in
:mod:`emkit.backbones.images`.
"""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from emkit.errors import UserError

if TYPE_CHECKING:
    from emkit.backbones.base import Backbone

# by file, so that the names are known without importing torch
NAMES = tuple(sorted({path.stem for path in Path(__file__).parent.glob("*.py")} - {"__init__", "base", "images"}))
GENERAL = "causal_lm"  # reads every language model


@functools.cache
def get(name: str) -> Backbone:
    """The backbone called ``name``; raises ``UserError`` for an unknown one."""
    if name not in NAMES:
        raise UserError(f"unknown backbone '{name}': choose one of {', '.join(NAMES)}")
    from emkit.backbones.base import Backbone

    module = importlib.import_module(f"emkit.backbones.{name}")
    own = [kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__ == module.__name__]
    return next(kind for kind in own if issubclass(kind, Backbone))()


def reading(kind: str) -> list[str]:
    """The backbones for models of this ``model_type``, the default first: one that names it among its ``kinds``, else
    those that read every language model. Empty where there is none."""
    named = [name for name in NAMES if kind in get(name).kinds]
    return named or sorted((name for name in NAMES if get(name).reads(kind)), key=lambda name: name != GENERAL)
