"""The job of ``emkit merge``: open and check everything, merge, verify, and only then give the model its name."""

from __future__ import annotations

import contextlib
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from emkit import backbones
from emkit.checkpoints import Checkpoint, write_checkpoint
from emkit.determinism import deterministic
from emkit.engine.options import EngineOptions
from emkit.errors import UserError
from emkit.files import lock, sha256_file, unwritable, write_json
from emkit.like import check_method
from emkit.methods.key import content_key
from emkit.methods.registry import Context, Merge
from emkit.methods.row import leave
from emkit.own import card, checks, hub, resources, tokens
from emkit.own.adapters import AdapterCheckpoint, WithAdapters, check_base, is_adapter
from emkit.own.recipe import AUTO, MergeRecipe
from emkit.own.verify import OWN_CODE, verify
from emkit.shards import SHARD_BYTES
from emkit.sources import JsonlSource
from emkit.task_vectors import TaskVectors


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Prepared:
    """A merge whose inputs were opened and found to fit: nothing of their weights has been read but what had to be.

    ``folders``: where base and experts lie; ``config``: the base's; ``plan``: what will be done, in words.
    """

    recipe: MergeRecipe
    folders: Mapping[str, Path]
    config: checks.Config
    backbone: ModuleType | WithAdapters
    vectors: TaskVectors
    plan: tuple[str, ...]
    overwrite: bool = False
    needed: tuple[Path, ...] = ()

    def check_out(self) -> None:
        """``UserError`` unless the recipe's ``out`` may (still) be written."""
        resources.check_writable(self.recipe.out, self.overwrite, self.folders.values(), needed=self.needed)


def prepare(
    given: Mapping[str, Any],
    overwrite: bool = False,
    say: Callable[[str], None] = _say,
    engine: EngineOptions | None = None,
    needed: Iterable[Path] = (),
) -> Prepared:
    """Open and check everything that a recipe names; ``UserError`` for whatever would go wrong later.

    ``given`` went through :func:`emkit.own.recipe.check`. Hub ids are downloaded, their configurations first, so that
    models that cannot fit are not fetched. ``needed``: what else ``out`` may not hold, such as the cache of fits.
    """
    use = engine or EngineOptions()
    check_method(use.like, given["method"])
    needed = (*needed, *map(Path, given.get("calibration", {}).get("files", {}).values()))
    recipe, folders, config, remarks = _fit_together(given, overwrite, needed)
    recipe = recipe.following(use.like)
    names = {"base": given["base"], **recipe.experts}
    missing = sum(hub.missing_bytes(name, _who(label)) for label, name in names.items())
    if missing:
        say(f"download: {resources.check_disk(hub.cache(), missing, recipe.allows('disk'))}")
    folders = {label: hub.folder(name, _who(label), (*hub.SMALL, *hub.WEIGHTS)) for label, name in names.items()}
    module = backbones.get(recipe.backbone)
    base, experts = _open(recipe, folders, config, module)
    adapters = {label: expert for label, expert in experts.items() if isinstance(expert, AdapterCheckpoint)}
    vectors = TaskVectors(base, experts, partial(_names, base, module, given.get("tensors", "backbone")))
    if recipe.method.learned and not module.VISION:
        checks.learnable(folders["base"], vectors.names, module.parameter_name)
    remarks += _compare_weights(recipe, vectors)
    calibration = recipe.data["calibration"]
    needs = resources.estimate(recipe.method, vectors, dict(config.text), calibration, use, recipe.device)
    plan = (
        f"{recipe.method.name} of {', '.join(experts)} on {given['base']}, backbone {recipe.backbone}: "
        f"{len(vectors.names)} of {len(base.names)} tensors are merged",
        f"{resources.check_disk(recipe.out.parent, needs.disk, recipe.allows('disk'))}, "
        f"{resources.check_memory(needs.memory, recipe.allows('memory'))}",
    )
    for remark in remarks:
        say(f"warning: {remark}")
    return Prepared(
        recipe, folders, config, WithAdapters(module, adapters) if adapters else module, vectors, plan, overwrite
    )


def _fit_together(
    given: Mapping[str, Any], overwrite: bool, needed: tuple[Path, ...]
) -> tuple[MergeRecipe, dict[str, Path], checks.Config, list[str]]:
    """What can be told without weights: the recipe with its backbone, the models' folders, the base's configuration
    and remarks on what differs but may."""
    names = {"base": given["base"], **given["experts"]}
    folders = {label: hub.folder(name, _who(label), hub.SMALL) for label, name in names.items()}
    resources.check_writable(resources.place(given["out"]), overwrite, folders.values(), needed=needed)
    config = checks.config(folders["base"], "the base")
    for label in given["experts"]:
        if not is_adapter(folders[label]):
            expert = checks.config(folders[label], _who(label))
            checks.compare(config, expert, label, "rotary" in given.get("allow", []))
    recipe = MergeRecipe(given, checks.backbone_of(config, given.get("backbone", AUTO)))
    _check_device(recipe.device)
    remarks = tokens.compare(folders["base"], {label: folders[label] for label in recipe.experts}, recipe.tokenizer)
    return _check_calibration(recipe, config), folders, config, remarks


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
    if config.kind in OWN_CODE:
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
    recipe: MergeRecipe, folders: Mapping[str, Path], config: checks.Config, module: ModuleType
) -> tuple[Checkpoint, dict[str, Checkpoint]]:
    """Base and experts, adapters among them, with their headers read."""
    base = Checkpoint.open(folders["base"])
    whole = {label: Checkpoint.open(folders[label]) for label in recipe.experts if not is_adapter(folders[label])}
    base, whole = checks.same_heads(base, whole, config.tied)
    experts: dict[str, Checkpoint] = {}
    for label in recipe.experts:
        if label in whole:
            experts[label] = whole[label]
            continue
        adapter = AdapterCheckpoint(folders[label], base, module.parameter_name, label)
        if not recipe.allows("adapter_base"):
            check_base(adapter, recipe.given["base"], folders["base"])
        experts[label] = adapter
    return base, experts


def _names(base: Checkpoint, module: ModuleType, tensors: str, names: list[str]) -> list[str]:
    """The tensors to merge: the backbone's, or all of floating point."""
    if tensors == "backbone":
        return module.merged_names(names)
    return [name for name in names if base.info(name).dtype.is_floating_point]


def run(
    prepared: Prepared,
    command: str,
    cache: Path,
    say: Callable[[str], None] = _say,
    progress: bool = False,
    engine: EngineOptions | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> dict:
    """Merge, verify, and move the result to the recipe's ``out``; returns the report (a JSON value).

    The model is written beside ``out`` under a hidden name, checked there, and renamed, so that a model with the name
    has passed; a merge that was killed while writing or while it was checked goes on at its first unfinished shard.
    A second merge to the same ``out`` waits, and then finds it there. The report is also in it,
    as emkit_merge.json, with the card and, for learned methods, coefficients.json and history.json. ``cache`` keeps
    what a killed fit goes on from; ``engine`` says what a fit may use of the machine.
    """
    use = engine or EngineOptions()
    prepared = replace(prepared, recipe=prepared.recipe.following(use.like))
    recipe, vectors = prepared.recipe, prepared.vectors
    everyone = {"base": vectors.base, **vectors.checkpoints}
    for label, checkpoint in everyone.items():
        say(f"reading {label}: hash, and whether every value is finite")
        checkpoint.scan(str(checkpoint.path))
    context = Context(
        recipe,
        {"id": recipe.method.name},
        recipe.seed,
        cache,
        recipe.scale,
        progress,
        prepared.backbone,
        vectors.base,
        vectors,
        recipe.settings(),
        recipe.device,
        use,
    )
    if recipe.method.learned:
        say(f"calibration sets and fits are kept in {cache}: the same command goes on from there")
    file, wait = recipe.out.with_name(f".{recipe.out.name}.lock"), f"waiting for another merge to {recipe.out}"
    with lock(file, remove=True, waiting=lambda: say(wait)), _named(recipe.out):
        prepared.check_out()  # another merge may have written it while this one waited
        with deterministic(), tempfile.TemporaryDirectory() as side:
            return _write(prepared, context, command, Path(side), say, shard_bytes)


def _write(
    prepared: Prepared, context: Context, command: str, side: Path, say: Callable[[str], None], shard_bytes: int
) -> dict:
    """Merge and write; the folder is checked under its hidden name, where a kill or Ctrl-C leaves it to go on from."""
    recipe, vectors = prepared.recipe, prepared.vectors
    base, owner = prepared.folders["base"], prepared.folders[recipe.tokenizer]
    tokens.side_files(base, owner if tokens.has_tokenizer(owner) else base, side)
    merge = recipe.method.run(context)
    report = _report(prepared, context, merge, command)
    like = vectors.base.with_side_files(side)

    def finish(part: Path) -> None:
        if merge.learned is not None:
            leave(merge.learned, part)
        say("checking it")
        kind, module = prepared.config.kind, backbones.get(recipe.backbone)
        report["checked"] = verify(part, like, vectors.names, module, kind, recipe.device)
        report["model_sha256"] = Checkpoint.open(part).sha256()
        write_json(part / resources.REPORT, report)
        for file in part.iterdir():
            file.chmod(0o644)  # the safetensors writer makes files that only their owner can read

    say(f"writing {recipe.out}")
    readme, key = card.text(report, recipe.method, recipe.sources()), content_key(context, recipe.method.name, merge)
    write_checkpoint(recipe.out, merge.tensors, like, readme, shard_bytes, key, finish, prepared.check_out)
    return report


@contextlib.contextmanager
def _named(out: Path) -> Iterator[None]:
    """Errors speak of ``out``, the name a person knows, not of the hidden folder beside it."""
    try:
        yield
    except OSError as error:
        raise unwritable(out, error) from error
    except UserError as error:
        hidden = rf"({re.escape(str(out.parent))}/)?{re.escape(f'.{out.name}.part')}[^\s:)]*"
        raise UserError(re.sub(hidden, lambda _: str(out), str(error))) from error


def _report(prepared: Prepared, context: Context, merge: Merge, command: str) -> dict[str, Any]:
    """What the merged model was made from and how, as a JSON value."""
    recipe, vectors = prepared.recipe, prepared.vectors
    everyone = {"base": vectors.base, **vectors.checkpoints}
    names = {"base": recipe.given["base"], **recipe.experts}
    files = recipe.data["calibration"].get("files", {})
    learned = merge.learned.calibration if merge.learned is not None else {}
    return {
        "method": recipe.method.name,
        "backbone": recipe.backbone,
        "seed": recipe.seed,
        "recipe": dict(recipe.given),
        "options": dict(context.options),
        **({"fit": context.engine.recorded} if recipe.method.learned else {}),
        "command": command,
        "inputs": {
            label: {"name": names[label], "folder": str(prepared.folders[label]), "sha256": checkpoint.sha256()}
            for label, checkpoint in everyone.items()
        },
        "tokenizer": recipe.tokenizer,
        "tensors": len(vectors.base.names),
        "merged_tensors": len(vectors.names),
        "coefficients": card.coefficients(merge),
        "calibration": {name: {**entry, "sha256": sha256_file(files[name])} for name, entry in learned.items()},
        "versions": card.versions(),
    }
