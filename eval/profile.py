"""A profile as data: what the rows of any table are computed with, for one backbone.

Models, calibration, the values of a free scale, seeds, benchmark items, and where a method's options differ from its
defaults, each with its source. A profile is a folder with one file a backbone, such as ``eval/profiles/mini``, or a
single file of the same keys. Nothing in the code asks which profile it is. With ``like: mini`` a file
gives only the keys that differ from that profile's file of the same name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from emkit import backbones
from emkit.alignment.like import imposed, layer
from emkit.alignment.options import EngineOptions
from emkit.alignment.sources import ZooSamples
from emkit.config import Name, Settings, option, parse
from emkit.errors import UserError
from emkit.methods import check_options, get, resolved
from emkit.schema import fail, load_yaml, nearest
from eval import columns

FOLDER = Path(__file__).parent / "profiles"
SEEDS = "EMKIT_SEEDS"  # how many seeds random rows have, in place of the profile's; its jobs inherit it


class Models(Settings):
    """The checkpoints: folders or hub ids."""

    base: str = option(..., "the model that the experts were trained from")
    experts: dict[Name, str] = option(..., "expert → checkpoint, in the order of the task vectors", min_length=1)
    mixture: str | None = option(None, "the model trained on the experts' data together; none: it is not public")
    tokenizer: str | None = option(
        None, "whose tokenizer and chat template all models are asked with: base or an expert; none: each its own"
    )


class Fitting(Settings):
    """What fits may use of the machine (:class:`emkit.alignment.options.EngineOptions`)."""

    dtype: Literal["float32", "bfloat16"] = option("float32", "the merged weights while coefficients are fitted")
    checkpointing: bool = option(False, "whether activations are computed again instead of kept")
    micro_tokens: int = option(EngineOptions.micro_tokens, "padded tokens in one pass", ge=1)

    @property
    def engine(self) -> EngineOptions:
        """The same, as fits take it."""
        return EngineOptions(dtype=self.dtype, checkpointing=self.checkpointing, micro_tokens=self.micro_tokens)


class Prompts(Settings):
    """Of which columns' questions the calibration's files are made (:mod:`eval.prompts`)."""

    columns: dict[str, list[str]] = option(..., "task → the columns whose questions are its prompts", min_length=1)
    each: int = option(128, "prompts a task, of which a seed draws a fit's samples; or all that there are", ge=1)
    seed: int = option(0, "draws which of a column's questions they are")


class Profile(Settings):
    """What a table's rows depend on besides the table; paths are relative to the working folder."""

    name: Name = option(..., "the folder of its results below results/")
    backbone: str = option(..., "the family of the models")
    zoo: str | None = option(None, "the miniature zoo (emkit/recipes/zoo) to train where models are missing")
    device: str = option("cpu", "where fits and answers run")
    models: Models = option(..., "the checkpoints")
    calibration: ZooSamples = option(..., "the samples of the learned methods")
    prompts: Prompts | None = option(None, "how the calibration's files are made; none: somebody puts them there")
    fits: Fitting = option(Fitting(), "what fits may use of the machine")
    grid: list[float] = option(..., "the values of a free scale that are tried on validation items", min_length=1)
    scales: dict[str, float] = option({}, "row → its scale, given and not searched")
    leave_out: list[str] = option([], "rows of a table that are neither run nor shown")
    seeds: list[int] = option(..., "for rows with something random; the others run with the first", min_length=1)
    protocol: columns.Asking = option(..., "how the columns are asked")
    beside: list[str] = option([], "profiles whose order of the merges a table's conclusion compares with its own")
    asked_as: str | None = option(None, "the profile of which the columns' files speak; none: its own name")
    methods: dict[str, dict[str, Any]] = option({}, "method → options that differ from its defaults")
    prose: dict[str, str] = option(
        {}, "paragraphs of a table's notebook that hold for these models, in place of the table's own of that name"
    )
    sources: dict[str, str] = option({}, "dotted key → where its value is from")

    @cached_property
    def checkpoints(self) -> dict[str, str]:
        """Role (``base``, ``mixture`` where there is one, experts) → folder or hub id."""
        mixture = {"mixture": self.models.mixture} if self.models.mixture is not None else {}
        return {"base": self.models.base, **mixture, **self.models.experts}

    def options(
        self, name: str, own: Mapping[str, Any], like: str | None = None, samples: int = 1, where: str = ""
    ) -> Settings:
        """Every option of a method: its defaults, the profile's (of the method that it inherits from first), a row's
        ``own``, and with ``like`` what that puts in their place (``samples`` of each task are its one epoch)."""
        method = get(name)
        layers = [self.methods.get(method.inherits or "", {}), self.methods.get(name, {}), own]
        if like is not None:
            theirs = imposed(name, samples, len(self.models.experts), self.backbone)
            layers.append(layer({*layers[0], *layers[1], *layers[2]}, theirs))
        return resolved(method, *layers, backbone=self.backbone, where=f"{where}methods.{name}")


def _like(data: Any, path: Path, where: str) -> Any:
    """The keys of a file over those of the shipped profile that it is ``like``, for the backbone of its own name."""
    if not isinstance(data, dict) or "like" not in data:
        return data
    name = data["like"]
    under = FOLDER / str(name) / path.name
    if not under.is_file():
        known = [found.name for found in FOLDER.iterdir() if (found / path.name).is_file() and found != path.parent]
        raise fail(f"{where}like", f"there is no profile '{name}' with a file {path.name}: {nearest(str(name), known)}")
    own = {key: value for key, value in data.items() if key != "like"}
    return {**load_yaml(under.read_text(encoding="utf-8"), str(under)), **own}


def find(name: str | Path, backbone: str) -> Path:
    """The file of a profile for a backbone: in a shipped folder by its name, in a folder of one's own, or the file."""
    folder = next((folder for folder in (FOLDER / str(name), Path(name)) if folder.is_dir()), None)
    if folder is not None:
        path = folder / f"{backbone}.yaml"
        if not path.is_file():
            there = ", ".join(sorted(found.stem for found in path.parent.glob("*.yaml")))
            raise UserError(f"the profile {name} has no file for the backbone '{backbone}': it has {there}")
        return path
    if Path(name).suffix not in (".yaml", ".yml"):
        known = [found.name for found in FOLDER.iterdir() if found.is_dir()]
        raise UserError(f"there is no profile '{name}': {nearest(str(name), known)}, or give a folder or YAML file")
    return Path(name)


def load(path: Path) -> Profile:
    """Read and check a profile; ``UserError`` naming file, key and, for a typing error, the nearest valid key."""
    where = f"{path}: "
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read the profile {path}: {error.strerror}") from error
    data = _like(load_yaml(content, str(path)), path, where)
    profile = _seeded(parse(Profile, data, where))
    if profile.backbone not in backbones.NAMES:
        known = nearest(profile.backbone, backbones.NAMES)
        raise fail(f"{where}backbone", f"unknown backbone '{profile.backbone}': {known}")
    for name, given in profile.methods.items():
        check_options(get(name), given, f"{where}methods.{name}", profile.models.experts)
    owner, owners = profile.models.tokenizer, ("base", *profile.models.experts)
    if owner is not None and owner not in owners:
        raise fail(f"{where}models.tokenizer", f"'{owner}' is neither base nor an expert: {nearest(owner, owners)}")
    if profile.calibration.source == "jsonl":
        for name in profile.models.experts:
            if name not in profile.calibration.files:
                raise fail(f"{where}calibration.files", f"the task '{name}' has no file")
    if profile.prompts is not None:
        _check_prompts(profile, where)
    _check_sources(data, where)
    return profile


def _check_prompts(profile: Profile, where: str) -> None:
    """``UserError`` where files cannot be made as ``prompts`` says."""
    assert profile.prompts is not None
    files = profile.calibration.files
    if profile.calibration.source != "jsonl" or len({Path(file).parent for file in files.values()}) != 1:
        raise fail(f"{where}prompts", "makes files: `calibration` needs source jsonl, and files of one folder")
    for task in {**profile.models.experts, **profile.prompts.columns}:
        if task not in profile.prompts.columns or task not in files:
            raise fail(f"{where}prompts.columns", f"'{task}' has to have columns here and a file in calibration.files")
    for name in (name for names in profile.prompts.columns.values() for name in names):
        if name not in columns.names():
            raise fail(f"{where}prompts.columns", f"unknown benchmark '{name}': {nearest(name, columns.names())}")


def _seeded(profile: Profile) -> Profile:
    """The profile with as many seeds as the environment asks for (``make … SEEDS=5``); its own where it does not."""
    given = os.environ.get(SEEDS, "")
    if not given:
        return profile
    if not given.isdecimal() or int(given) < 1:
        raise UserError(f"{SEEDS} is '{given}', not a number of seeds: give a whole number from 1, such as SEEDS=5")
    return profile.model_copy(update={"seeds": list(range(int(given)))})


def _check_sources(data: Mapping[str, Any], where: str) -> None:
    """A source must belong to a value that is there."""
    for dotted in data.get("sources", {}):
        at: Any = data
        for key in dotted.split("."):
            if not isinstance(at, dict) or key not in at:
                known = at if isinstance(at, dict) else []
                raise fail(f"{where}sources", f"'{dotted}' is no key of this profile: {nearest(key, known)}")
            at = at[key]
