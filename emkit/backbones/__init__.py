"""What differs between families of models, and only that: one module a family, all with the same functions.

A backbone module offers ``load``, ``merged_names``, ``parameter_name``, ``blocks``, ``encode``, ``image_features``,
``vision_state``, ``forward`` and ``generate``; ``emkit/backbones/internvl.py`` documents them.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from emkit.errors import UserError

NAMES = ("internvl",)


def get(name: str) -> ModuleType:
    """The backbone module called ``name``; raises ``UserError`` for an unknown one."""
    if name not in NAMES:
        raise UserError(f"unknown backbone '{name}': choose one of {', '.join(NAMES)}")
    return importlib.import_module(f"emkit.backbones.{name}")
