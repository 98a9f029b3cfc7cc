"""A profile's models, opened: whole ones in their folders, and LoRA adapters over its base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from emkit import layouts
from emkit.backbones.base import Backbone
from emkit.checkpoints import Checkpoint
from emkit.own.adapters import AdapterCheckpoint, check_base, is_adapter
from eval.profile import Models


def base_and_experts(models: Models, backbone: Backbone) -> tuple[Checkpoint, dict[str, Checkpoint]]:
    """The base, and every expert as it is stored; an adapter reads as the base with the adapter merged in.

    Only headers are read. ``UserError`` for what is no checkpoint, and for an adapter of another base.
    """
    base = Checkpoint.open(models.base)
    return base, opened(models.experts, base, backbone)


def opened(folders: Mapping[str, str], base: Checkpoint, backbone: Backbone) -> dict[str, Checkpoint]:
    """The models in ``folders``, by label."""
    layout, found = None, {}
    for label, name in folders.items():
        folder = Path(name)
        if not is_adapter(folder):
            found[label] = Checkpoint.open(folder)
            continue
        layout = layout or layouts.of(base.path, backbone)
        found[label] = adapter = AdapterCheckpoint(folder, base, layout, label)
        check_base(adapter, base.path.name, base.path)
    return found
