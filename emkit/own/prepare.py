"""Everything about a merge that can be checked before its weights are read: models opened, compared, and their room."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from emkit import backbones, layouts
from emkit.backbones.base import Backbone
from emkit.checkpoints import Checkpoint
from emkit.engine.options import EngineOptions
from emkit.errors import UserError
from emkit.like import check_given, check_method, imposed
from emkit.own import card, checks, differences, hub, resources, tokens
from emkit.own.adapters import AdapterCheckpoint, WithAdapters, check_base, is_adapter
from emkit.own.recipe import AUTO, MergeRecipe
from emkit.sources import JsonlSource
from emkit.task_vectors import TaskVectors


def say_to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Prepared:
    """A merge whose inputs were opened and found to fit: nothing of their weights has been read but what had to be.

    ``folders``: where base and experts lie; ``config``: the base's; ``plan``: what will be done, in words; ``remarks``:
    what differs but may; ``left_out``: by expert, what the merged model will lack of it; ``missing_code``: files that
    its configuration names.
    """

    recipe: MergeRecipe
    folders: Mapping[str, Path]
    config: checks.Config
    backbone: Backbone
    vectors: TaskVectors
    plan: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    left_out: Mapping[str, list[str]] = field(default_factory=dict)
    missing_code: tuple[str, ...] = ()
    overwrite: bool = False
    needed: tuple[Path, ...] = ()

    def check_out(self) -> None:
        """``UserError`` unless the recipe's ``out`` may (still) be written."""
        resources.check_writable(self.recipe.out, self.overwrite, self.folders.values(), needed=self.needed)


def prepare(
    given: Mapping[str, Any],
    overwrite: bool = False,
    say: Callable[[str], None] = say_to_stderr,
    engine: EngineOptions | None = None,
    needed: Iterable[Path] = (),
) -> Prepared:
    """Open and check everything that a recipe names; ``UserError`` for whatever would go wrong later.

    ``given`` went through :func:`emkit.own.recipe.check`. Hub ids are downloaded, their configurations first, so that
    models that cannot fit are not fetched. ``needed``: what else ``out`` may not hold, such as the cache of fits.
    """
    use = engine or EngineOptions()
    check_method(use.like, given["method"])
    if use.like is not None:
        check_given(given.get("options", {}), _known_at_once(given["method"]))
    needed = (*needed, *map(Path, given.get("calibration", {}).get("files", {}).values()))
    recipe, folders, configs, remarks = _fit_together(given, overwrite, needed)
    recipe = recipe.following(use.like)
    names = {"base": given["base"], **recipe.experts}
    missing = sum(hub.missing_bytes(name, _who(label)) for label, name in names.items())
    if missing:
        say(f"download: {resources.check_disk(hub.cache(), missing, recipe.allows('disk'))}")
    folders = {label: hub.folder(name, _who(label), (*hub.SMALL, *hub.WEIGHTS)) for label, name in names.items()}
    layout = layouts.of(folders["base"], backbones.get(recipe.backbone))
    base, experts = _open(recipe, folders, configs, layout)
    module = _named(base, layout)
    adapters = {label: expert for label, expert in experts.items() if isinstance(expert, AdapterCheckpoint)}
    merged = partial(_names, base, module, given.get("tensors", "backbone"))
    vectors = _vectors(base, layouts.aligned(base, experts, layout.backbone, layout), merged, given)
    if recipe.method.learned:
        _check_learnable(recipe, configs, layout, vectors, experts)
    remarks += _compare_weights(recipe, vectors)
    left_out = _left_out(recipe, folders, configs, layout, vectors, experts)
    code = _missing_code(recipe, folders)
    calibration = recipe.data["calibration"]
    needs = resources.estimate(recipe.method, vectors, dict(configs["base"].text), calibration, use, recipe.device)
    plan = (
        f"{recipe.method.name} of {', '.join(experts)} on {given['base']}, backbone {recipe.backbone}: "
        f"{len(vectors.names)} of {len(base.names)} tensors are merged",
        f"{resources.check_disk(recipe.out.parent, needs.disk, recipe.allows('disk'))}, "
        f"{resources.check_memory(needs.memory, recipe.allows('memory'))}",
        *(f"left out of {label}: {what}" for label, whats in left_out.items() for what in whats),
    )
    for remark in [*remarks, *([card.code(code, given["base"])] if code else [])]:
        say(f"warning: {remark}")
    module = WithAdapters(module, adapters) if adapters else module
    return Prepared(
        recipe,
        folders,
        configs["base"],
        module,
        vectors,
        plan,
        tuple(remarks),
        left_out,
        tuple(code),
        overwrite,
        needed,
    )


def _known_at_once(method: str) -> dict[str, Any]:
    """What ``--like`` sets without a model having been opened: all but the number of steps."""
    found = imposed(method, 1, 1, "causal_lm")
    return found | {"optimiser": {key: value for key, value in found["optimiser"].items() if key != "steps"}}


def _named(base: Checkpoint, layout: layouts.Layout) -> Backbone:
    """The backbone as it reads this base's names."""
    if layout.outline is None:
        return layout.backbone
    return layouts.Named(layout.backbone, {name: layout.parameter(name) for name in base.names})


def _check_learnable(
    recipe: MergeRecipe,
    configs: Mapping[str, checks.Config],
    layout: layouts.Layout,
    vectors: TaskVectors,
    experts: Mapping[str, Checkpoint],
) -> None:
    """``UserError`` unless the base's coefficients can be fitted and every expert can teach."""
    if not layout.backbone.VISION:
        checks.learnable(layout, vectors.names)
    ours = configs["base"].text.get("vocab_size")
    for label, expert in experts.items():
        theirs = configs[label].text.get("vocab_size") if label in configs else ours
        checks.can_teach(expert, layout, label, (theirs, ours))


def _vectors(
    base: Checkpoint, experts: Mapping[str, Checkpoint], merged: Callable, given: Mapping[str, Any]
) -> TaskVectors:
    try:
        return TaskVectors(base, experts, merged)
    except UserError as error:
        if given.get("tensors") != "all":
            raise
        raise UserError(f"{error}; `--tensors backbone` merges the blocks alone") from error


def _missing_code(recipe: MergeRecipe, folders: Mapping[str, Path]) -> list[str]:
    """Code files that the merged model's configurations will name."""
    owner = folders[recipe.tokenizer]
    with tempfile.TemporaryDirectory() as side:
        tokens.side_files(folders["base"], owner if tokens.has_tokenizer(owner) else folders["base"], Path(side))
        return differences.missing_code(Path(side))


def _left_out(
    recipe: MergeRecipe,
    folders: Mapping[str, Path],
    configs: Mapping[str, checks.Config],
    layout: layouts.Layout,
    vectors: TaskVectors,
    experts: Mapping[str, Checkpoint],
) -> dict[str, list[str]]:
    ours, found = configs["base"].text.get("vocab_size"), {}
    for label, expert in experts.items():
        rows = (configs[label].text.get("vocab_size") if label in configs else None, ours)
        tied = (configs[label].tied, configs["base"].tied) if label in configs else (False, False)
        owner = folders[recipe.tokenizer]
        if out := differences.left_out(vectors.base, expert, layout, vectors.names, rows, tied, owner):
            found[label] = out
    return found


def _fit_together(
    given: Mapping[str, Any], overwrite: bool, needed: tuple[Path, ...]
) -> tuple[MergeRecipe, dict[str, Path], dict[str, checks.Config], list[str]]:
    """What can be told without weights: the recipe with its backbone, the models' folders, the configurations of those
    that are whole, and remarks on what differs but may."""
    names = {"base": given["base"], **given["experts"]}
    folders = {label: hub.folder(name, _who(label), hub.SMALL) for label, name in names.items()}
    resources.check_writable(resources.place(given["out"]), overwrite, folders.values(), needed=needed)
    configs, remarks = {"base": checks.config(folders["base"], "the base")}, []
    every, rotary = given.get("tensors") == "all", "rotary" in given.get("allow", [])
    for label in given["experts"]:
        if not is_adapter(folders[label]):
            configs[label] = checks.config(folders[label], _who(label))
            remarks += checks.compare(configs["base"], configs[label], label, rotary, every)
    recipe = MergeRecipe(given, checks.backbone_of(configs["base"], given.get("backbone", AUTO)))
    _check_device(recipe.device)
    remarks += tokens.compare(folders["base"], {label: folders[label] for label in recipe.experts}, recipe.tokenizer)
    having = [label for label, folder in folders.items() if tokens.has_tokenizer(folder)]
    if not {"base", recipe.tokenizer} & set(having):
        way = f"`--tokenizer {having[0]}` takes that of {having[0]}" if having else "put its files beside the weights"
        raise UserError(f"the base ({folders['base']}) has no tokenizer, without which the result cannot run: {way}")
    owner = recipe.tokenizer if recipe.tokenizer in having else "base"
    rows = configs["base"].text.get("vocab_size")
    remarks += tokens.check_rows(_who(owner), folders[owner], rows, recipe.allows("tokenizer"))
    return _check_calibration(recipe, configs["base"]), folders, configs, remarks


def _compare_weights(recipe: MergeRecipe, vectors: TaskVectors) -> list[str]:
    """Remarks on experts of another precision; ``UserError`` for one that is the base."""
    remarks = []
    for label, expert in vectors.checkpoints.items():
        if not recipe.allows("identical") and checks.identical(vectors.base, expert, vectors.names):
            raise UserError(
                f"expert '{label}' ({expert.path}) is identical to the base in every tensor that is merged: it has "
                "nothing to give; drop it, or `--allow identical`"
            )
        if not isinstance(expert, AdapterCheckpoint) and (remark := checks.dtypes(vectors.base, expert, vectors.names)):
            remarks.append(f"expert '{label}' {remark}")
    return remarks


def _who(label: str) -> str:
    return "the base" if label == "base" else f"expert '{label}'"


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device: torch has no '{device}' here ({reason}): leave it out") from error


def _check_calibration(recipe: MergeRecipe, config: checks.Config) -> MergeRecipe:
    """The recipe with its number of samples, once a learned method's prompts were found to be there and to be enough.

    Where the recipe does not say how many, there are at most as many as every expert has prompts.
    """
    if not recipe.method.learned:
        return recipe
    if config.kind in backbones.get(recipe.backbone).own_code:
        raise UserError(
            f"{recipe.method.name} has to run the models, and a {config.kind} needs its own code for that, which emkit "
            "never runs: convert them to transformers' layout, or use a method that needs no prompts"
        )
    given, settings = recipe.given["calibration"], recipe.data["calibration"]
    counts = []
    for label, file in settings["files"].items():
        lines = JsonlSource(settings["files"]).lines(label)
        counts.append(len(lines))
        if "samples" in given and counts[-1] < given["samples"]:
            raise UserError(
                f"{file} has {counts[-1]} prompts for the {given['samples']} samples of expert '{label}': give more, "
                "or lower calibration.samples"
            )
        if not backbones.get(recipe.backbone).VISION and any(image is not None for image, _ in lines):
            raise UserError(f"{file} has images, but the backbone {recipe.backbone} sees none: leave them out")
    samples = min(settings["samples"], *counts)
    return replace(recipe, given={**recipe.given, "calibration": {**given, "samples": samples}})


def _open(
    recipe: MergeRecipe, folders: Mapping[str, Path], configs: Mapping[str, checks.Config], layout: layouts.Layout
) -> tuple[Checkpoint, dict[str, Checkpoint]]:
    """Base and experts, adapters among them, with their headers read."""
    whole = {}
    for label, config in configs.items():
        own = layouts.of(folders[label], layout.backbone) if config.tied != configs["base"].tied else layout
        stored = Checkpoint.open(folders[label])
        buffers = [name for name in stored.names if layout.outline is not None and layout.unused(name)]
        whole[label] = checks.without_copies(stored.without(buffers), own, _who(label))
    base = whole.pop("base")
    experts: dict[str, Checkpoint] = {}
    for label in recipe.experts:
        if label in whole:
            experts[label] = whole[label]
            continue
        adapter = AdapterCheckpoint(folders[label], base, layout, label)
        if not recipe.allows("adapter_base"):
            check_base(adapter, recipe.given["base"], folders["base"])
        experts[label] = adapter
    return base, experts


def _names(base: Checkpoint, module: Backbone, tensors: str, names: list[str]) -> list[str]:
    """The tensors to merge: the backbone's, or all of floating point."""
    if tensors == "backbone":
        return module.merged_names(names)
    return [name for name in names if base.info(name).dtype.is_floating_point]
