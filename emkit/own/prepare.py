"""Everything about a merge that can be checked before its weights are read: models opened, compared, and their room."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from emkit import backbones, foreign, words
from emkit.alignment.like import check_given, check_method, imposed
from emkit.alignment.options import EngineOptions
from emkit.alignment.sources import JsonlSource, Samples
from emkit.errors import UserError
from emkit.own import card, checks, differences, resources, tokens
from emkit.own.models import AUTO, Described, Models, describe, folders_of, open_models, who
from emkit.own.recipe import MergeRecipe


@dataclass(frozen=True)
class Prepared:
    """A merge whose inputs were opened and found to fit (``models``).

    ``plan``: what will be done, in words; ``remarks``: what differs but may; ``left_out``: by expert, what the merged
    model will lack of it; ``missing_code``: code that the configuration names and the merged model is without.
    """

    recipe: MergeRecipe
    models: Models
    plan: tuple[str, ...]
    remarks: tuple[str, ...] = ()
    left_out: Mapping[str, list[str]] = field(default_factory=dict)
    missing_code: tuple[str, ...] = ()
    overwrite: bool = False
    needed: tuple[Path, ...] = ()

    def check_out(self) -> None:
        """``UserError`` unless the recipe's ``out`` may (still) be written."""
        folders = self.models.folders.values()
        resources.check_writable(self.recipe.out, self.overwrite, folders, needed=self.needed)


def prepare(
    given: Mapping[str, Any],
    overwrite: bool = False,
    say: Callable[[str], None] = words.say,
    engine: EngineOptions | None = None,
    needed: Iterable[Path] = (),
    hollow: Path | None = None,
) -> Prepared:
    """Open and check everything that a recipe names; ``UserError`` for whatever would go wrong later.

    ``given`` went through :func:`emkit.own.recipe.check`. Hub ids are downloaded, their configurations first, so that
    models that cannot fit are not fetched. ``needed``: what else ``out`` may not hold, such as the cache of fits.
    ``hollow``: a folder for models of which nothing but headers is fetched (:func:`emkit.own.models.open_models`).
    """
    use = engine or EngineOptions()
    check_method(use.like, given["method"])
    if use.like is not None:
        check_given(given.get("options", {}), _known_at_once(given["method"]))
    needed = (*needed, *map(Path, given.get("calibration", {}).get("files", {}).values()))
    recipe, described, remarks = _fit_together(given, overwrite, needed)
    recipe = recipe.following(use.like)
    try:
        models = open_models(described, say, hollow)
    except UserError as error:
        raise _by_name(error, hollow, list(given["experts"].values()), given["base"]) from error
    if recipe.method.learned:
        check_learnable(models)
    remarks += models.remarks
    left_out, code = _left_out(recipe, models), _missing_code(recipe, models.folders)
    config, vectors = described.configs["base"], models.vectors
    calibration = recipe.calibration
    needs = resources.estimate(recipe.method, vectors, dict(config.text), calibration, use, recipe.device)
    small = sum(file.stat().st_size for file in tokens.taken(models.folders["base"], models.folders[recipe.tokenizer]))
    plan = (
        f"{recipe.method.name} of {', '.join(vectors.experts)} on {given['base']}, backbone {recipe.backbone}: "
        f"{len(vectors.names)} of {len(vectors.base.names)} tensors are merged",
        f"{resources.check_disk(recipe.out.parent, needs.disk + small, recipe.allows('disk'))}, "
        f"{resources.check_memory(needs.memory, recipe.allows('memory'))}",
        *(f"left out of {label}: {what}" for label, whats in left_out.items() for what in whats),
    )
    for remark in [*remarks, *([card.code(code, given["base"])] if code else [])]:
        say(f"warning: {remark}")
    return Prepared(recipe, models, plan, tuple(remarks), left_out, tuple(code), overwrite, needed)


def _by_name(error: UserError, hollow: Path | None, experts: list[str], base: str) -> UserError:
    """The error with a model's name in place of the folder that a dry run put its headers in."""
    text = str(error)
    for number, name in enumerate((base, *experts)):
        for part in ("stored", "read"):
            text = text.replace(f"{hollow}/{number}/{part}", name)
    return UserError(text)


def _known_at_once(method: str) -> dict[str, Any]:
    """What ``--like`` sets without a model having been opened: all but the number of steps."""
    found = imposed(method, 1, 1, "causal_lm")
    return found | {"optimiser": {key: value for key, value in found["optimiser"].items() if key != "steps"}}


def check_learnable(models: Models) -> None:
    """``UserError`` unless the base's coefficients can be fitted and every expert can teach."""
    layout, described = models.layout, models.described
    if not layout.backbone.VISION:
        checks.learnable(layout, models.vectors.names)
    ours = described.vocabulary("base")
    for label, expert in models.experts.items():
        theirs = described.vocabulary(label) if label in described.configs else ours
        checks.can_teach(expert, layout, label, (theirs, ours))


def _missing_code(recipe: MergeRecipe, folders: Mapping[str, Path]) -> list[str]:
    """Code files that the configurations name which the merged model is made with."""
    files = tokens.taken(folders["base"], folders[recipe.tokenizer])
    return differences.missing_code(file for file in files if file.match("*config.json"))


def _left_out(recipe: MergeRecipe, models: Models) -> dict[str, list[str]]:
    described, vectors, found = models.described, models.vectors, {}
    configs, owner = described.configs, models.folders[recipe.tokenizer]
    for label, expert in models.experts.items():
        rows = (described.vocabulary(label), described.vocabulary("base"))
        tied = (configs[label].tied, configs["base"].tied) if label in configs else (False, False)
        if out := differences.left_out(vectors.base, expert, models.layout, vectors.names, rows, tied, owner):
            found[label] = out
    return found


def _fit_together(
    given: Mapping[str, Any], overwrite: bool, needed: tuple[Path, ...]
) -> tuple[MergeRecipe, Described, list[str]]:
    """What can be told without weights: the recipe with its backbone, the models' configurations, and remarks on what
    differs but may."""
    names = {"base": given["base"], **given["experts"]}
    folders = folders_of(names)
    resources.check_writable(resources.place(given["out"]), overwrite, folders.values(), needed=needed)
    asked = given.get("backbone", AUTO), given.get("tensors", "backbone"), given.get("allow", ())
    described = describe(names, folders, *asked)
    recipe = MergeRecipe(given, described.backbone)
    owner = folders[recipe.tokenizer]
    for file in tokens.taken(folders["base"], owner):
        foreign.check_inside(file, owner if file.is_relative_to(owner) else folders["base"])
    _check_device(recipe.device)
    remarks = [*described.remarks, *_compare_tokenizers(recipe, folders, described.vocabulary("base"))]
    return _check_calibration(recipe), described, remarks


def _compare_tokenizers(recipe: MergeRecipe, folders: Mapping[str, Path], rows: int | None) -> list[str]:
    """Remarks on tokenizers that differ; ``UserError`` unless the result has one that fits its ``rows``."""
    remarks = tokens.compare(folders["base"], {label: folders[label] for label in recipe.experts}, recipe.tokenizer)
    having = [label for label, folder in folders.items() if tokens.has_tokenizer(folder)]
    if not {"base", recipe.tokenizer} & set(having):
        way = f"`--tokenizer {having[0]}` takes that of {having[0]}" if having else "put its files beside the weights"
        raise UserError(f"the base ({folders['base']}) has no tokenizer, without which the result cannot run: {way}")
    owner = recipe.tokenizer if recipe.tokenizer in having else "base"
    return remarks + tokens.check_rows(who(owner), folders[owner], rows, recipe.allows("tokenizer"))


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device: torch has no '{device}' here ({reason}): leave it out") from error


def _check_calibration(recipe: MergeRecipe) -> MergeRecipe:
    """The recipe with its number of samples, once a learned method's prompts were found to be there and to be enough.

    Where the recipe does not say how many, there are at most as many as every expert has prompts.
    """
    if not recipe.method.learned:
        return recipe
    given, samples = recipe.given["calibration"], recipe.calibration
    number = enough(samples, "samples" in given, recipe.backbone)
    return replace(recipe, given={**recipe.given, "calibration": {**given, "samples": number}})


def enough(samples: Samples, asked: bool, backbone: str) -> int:
    """How many samples of each expert there are: as many as ``samples`` says, or fewer where that is a default.

    ``UserError`` where as many were ``asked`` for and a file of prompts has not got them, and for images that the
    backbone does not see.
    """
    counts, wanted = [], samples.samples
    for label, file in samples.files.items():
        lines = JsonlSource(samples.files).lines(label)
        counts.append(len(lines))
        if asked and counts[-1] < wanted:
            raise UserError(
                f"{file} has {counts[-1]} prompts for the {wanted} samples of expert '{label}': give more, or lower "
                "calibration.samples"
            )
        if not backbones.get(backbone).VISION and any(image is not None for image, _ in lines):
            raise UserError(f"{file} has images, but the backbone {backbone} sees none: leave them out")
    return min(wanted, *counts)
