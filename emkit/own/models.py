"""Base and experts by folder or hub id: described by their configurations first, then opened and compared."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from emkit import backbones, layouts
from emkit.backbones.base import Backbone
from emkit.checkpoints import Checkpoint
from emkit.errors import UserError
from emkit.own import checks, headers, hub, resources
from emkit.own.adapters import AdapterCheckpoint, check_base, is_adapter, with_adapters
from emkit.task_vectors import TaskVectors

AUTO = "auto"


def who(label: str) -> str:
    """What a message calls the model with this label."""
    return "the base" if label == "base" else f"expert '{label}'"


@dataclass(frozen=True)
class Described:
    """What is known of models without their weights. ``names`` and ``folders`` by label, ``base`` first; ``configs`` of
    those that are whole (an adapter has none); ``remarks`` on settings that differ but may."""

    names: Mapping[str, str]
    folders: Mapping[str, Path]
    configs: Mapping[str, checks.Config]
    backbone: str
    tensors: str
    allow: Collection[str]
    remarks: tuple[str, ...]

    def vocabulary(self, label: str) -> int | None:
        """Rows of a model's vocabulary; None for an adapter, whose own are not known."""
        return self.configs[label].text.get("vocab_size") if label in self.configs else None


def folders_of(names: Mapping[str, str]) -> dict[str, Path]:
    """Each model's folder with its small files: configuration, tokenizer, index. Hub ids are downloaded so far."""
    return {label: hub.folder(name, who(label), hub.SMALL) for label, name in names.items()}


def describe(
    names: Mapping[str, str],
    folders: Mapping[str, Path],
    backbone: str = AUTO,
    tensors: str = "backbone",
    allow: Collection[str] = (),
) -> Described:
    """Read and compare configurations; ``UserError`` where models cannot fit, whatever their weights are."""
    configs, remarks = {"base": checks.config(folders["base"], who("base"))}, []
    for label in names:
        if label != "base" and not is_adapter(folders[label]):
            configs[label] = checks.config(folders[label], who(label))
            remarks += checks.compare(configs["base"], configs[label], label, "rotary" in allow, tensors == "all")
    found = checks.backbone_of(configs["base"], backbone)
    return Described(names, folders, configs, found, tensors, allow, tuple(remarks))


@dataclass(frozen=True)
class Models:
    """Base and experts, opened and found to fit: nothing of their weights has been read but what had to be.

    ``backbone`` as it reads this base's names; ``vectors`` and, under the names that they are stored by, ``experts``;
    ``remarks``: what differs but may.
    """

    described: Described
    folders: Mapping[str, Path]
    layout: layouts.Layout
    backbone: Backbone
    vectors: TaskVectors
    experts: Mapping[str, Checkpoint]
    remarks: tuple[str, ...]


def open_models(described: Described, say: Callable[[str], None], hollow: Path | None = None) -> Models:
    """Download what is missing, open every model, and compare headers (``UserError`` for experts that do not fit).

    With a folder ``hollow`` nothing is downloaded nor converted: models whose weights are not here are put there as
    their headers alone (:mod:`emkit.own.headers`), and what only values tell of them is left to the merge.
    """
    names, allow, unread = described.names, described.allow, set[str]()
    if hollow is None:
        missing = sum(hub.missing_bytes(name, who(label)) for label, name in names.items())
        folders = {}
    else:
        seen = {label: headers.see(name, who(label), hollow / str(i)) for i, (label, name) in enumerate(names.items())}
        missing, folders = sum(model.fetch for model in seen.values()), {k: model.folder for k, model in seen.items()}
        unread = {label for label, model in seen.items() if model.hollow}
    if missing:
        say(f"download: {resources.check_disk(hub.cache(), missing, 'disk' in allow)}")
    if not folders:
        folders = {label: hub.folder(name, who(label), (*hub.SMALL, *hub.WEIGHTS)) for label, name in names.items()}
    layout = layouts.of(folders["base"], backbones.get(described.backbone))
    base, experts = _open(described, folders, layout)
    backbone = _named(base, layout)
    aligned = layouts.aligned(base, experts, layout.backbone, layout)
    vectors = _vectors(base, aligned, partial(_names, base, backbone, described.tensors), described.tensors)
    everyone = vectors.checkpoints
    alike = everyone if "identical" in allow or "base" in unread else unread
    remarks = _compare_weights(vectors, alike)
    backbone = with_adapters(backbone, experts)
    return Models(described, folders, layout, backbone, vectors, experts, tuple(remarks))


def _named(base: Checkpoint, layout: layouts.Layout) -> Backbone:
    """The backbone as it reads this base's names."""
    if layout.outline is None:
        return layout.backbone
    return layouts.Named(layout.backbone, {name: layout.parameter(name) for name in base.names})


def _open(
    described: Described, folders: Mapping[str, Path], layout: layouts.Layout
) -> tuple[Checkpoint, dict[str, Checkpoint]]:
    """Base and experts, adapters among them, with their headers read."""
    whole, configs = {}, described.configs
    for label, config in configs.items():
        own = layouts.of(folders[label], layout.backbone) if config.tied != configs["base"].tied else layout
        stored = Checkpoint.open(folders[label])
        buffers = [name for name in stored.names if layout.outline is not None and layout.unused(name)]
        whole[label] = checks.without_copies(stored.without(buffers), own, who(label))
    base = whole.pop("base")
    experts: dict[str, Checkpoint] = {}
    for label in described.names:
        if label in whole:
            experts[label] = whole[label]
        elif label != "base":
            experts[label] = adapter = AdapterCheckpoint(folders[label], base, layout, label)
            if "adapter_base" not in described.allow:
                check_base(adapter, described.names["base"], folders["base"])
    return base, experts


def _names(base: Checkpoint, backbone: Backbone, tensors: str, names: list[str]) -> list[str]:
    """The tensors to merge: the backbone's, or all of floating point."""
    if tensors == "backbone":
        return backbone.merged_names(names)
    return [name for name in names if base.info(name).dtype.is_floating_point]


def _vectors(base: Checkpoint, experts: Mapping[str, Checkpoint], merged: Callable, tensors: str) -> TaskVectors:
    try:
        return TaskVectors(base, experts, merged)
    except UserError as error:
        if tensors != "all":
            raise
        raise UserError(f"{error}; `--tensors backbone` merges the blocks alone") from error


def _compare_weights(vectors: TaskVectors, alike: Collection[str]) -> list[str]:
    """Remarks on experts of another precision; ``UserError`` for one that is the base, but for those that may be."""
    remarks = []
    for label, expert in vectors.checkpoints.items():
        if label not in alike and checks.identical(vectors.base, expert, vectors.names):
            raise UserError(
                f"expert '{label}' ({expert.path}) is identical to the base in every tensor that is merged: it has "
                "nothing to give; drop it, or `--allow identical`"
            )
        if not isinstance(expert, AdapterCheckpoint) and (remark := checks.dtypes(vectors.base, expert, vectors.names)):
            remarks.append(f"expert '{label}' {remark}")
    return remarks
