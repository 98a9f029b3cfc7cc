"""A profile's models, opened: whole ones in their folders, and LoRA adapters over its base."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from emkit import layouts
from emkit.backbones.base import Backbone
from emkit.checkpoints import Checkpoint
from emkit.own.adapters import AdapterCheckpoint, check_base, is_adapter


def base_and_experts(
    base: Path, experts: Mapping[str, Path], backbone: Backbone, name: str
) -> tuple[Checkpoint, dict[str, Checkpoint]]:
    """The base, whose ``name`` is the profile's, and every expert as it is stored; an adapter reads as the base with
    the adapter merged in.

    Only headers are read. ``UserError`` for what is no checkpoint, and for an adapter of another base.
    """
    found = Checkpoint.open(base)
    return found, opened(experts, found, backbone, name)


def opened(folders: Mapping[str, Path], base: Checkpoint, backbone: Backbone, name: str) -> dict[str, Checkpoint]:
    """The models in ``folders``, by label; ``name``: the base's."""
    layout, found = None, {}
    for label, folder in folders.items():
        if not is_adapter(folder):
            found[label] = Checkpoint.open(folder)
            continue
        layout = layout or layouts.of(base.path, backbone)
        found[label] = adapter = AdapterCheckpoint(folder, base, layout, label)
        check_base(adapter, Path(name).name if Path(name).exists() else name, base.path)
    return found
