"""What differs between families of models, and only that: one module a family, all with the same functions.

A backbone module offers ``load``, ``merged_names``, ``parameter_name``, ``blocks``, ``encode``, ``image_features``,
``vision_state``, ``forward`` and ``generate``; ``emkit/backbones/internvl.py`` documents them. ``VISION`` names what
``encode`` gives of images, each with one row (or an equal number of rows) an image, in the order in which
``image_features`` takes them: nothing for a model of text alone, whose image features are empty.

=========== ======================================================== ===========================================
name        models                                                   merged tensors
=========== ======================================================== ===========================================
internvl    InternVL2.5 and its miniature                            7 matrices a block, the projector's 3
qwen2_vl    Qwen2-VL                                                 7 matrices a block
mistral     Mistral, and what else has the Llama layout              7 matrices a block
causal_lm   any transformers causal language model of blocks         every weight matrix inside a block
=========== ======================================================== ===========================================

All other tensors (embeddings, heads, norms, biases, vision towers) stay at the base's values.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from emkit.errors import UserError

NAMES = ("causal_lm", "internvl", "mistral", "qwen2_vl")
TEXT_ALONE = ("causal_lm", "mistral")  # whose VISION is empty: known without importing transformers


def get(name: str) -> ModuleType:
    """The backbone module called ``name``; raises ``UserError`` for an unknown one."""
    if name not in NAMES:
        raise UserError(f"unknown backbone '{name}': choose one of {', '.join(NAMES)}")
    return importlib.import_module(f"emkit.backbones.{name}")
