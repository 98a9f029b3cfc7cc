"""The recipe of one merge of one's own models: what it may say, checked, with every default filled in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from emkit import backbones, foreign
from emkit.alignment.learner import SCALE
from emkit.alignment.like import SOURCE as LIKE_SOURCE
from emkit.alignment.like import check_given, check_method, imposed, layer
from emkit.alignment.sources import Samples
from emkit.config import Settings, Text, default, layered, option, own_default, own_defaults, parse
from emkit.content import default_device
from emkit.errors import UserError
from emkit.methods import Method, check_options, get, registry, resolved
from emkit.own import resources
from emkit.schema import fail, load_yaml, nearest

METHODS = tuple(name for name, found in registry().items() if found.merges)
AUTO = "auto"
# what a merge refuses unless its recipe allows it
Allowed = Literal["rotary", "adapter_base", "identical", "tokenizer", "disk", "memory"]


class Given(Settings):
    """What a recipe may say."""

    method: Text
    base: Text
    experts: dict[str, Text]
    out: Text
    scale: float | None = None
    options: dict[str, Any] = Field({})
    calibration: Samples = Samples()
    tokenizer: Text = "base"
    backbone: Text = AUTO
    tensors: Literal["backbone", "all"] = "backbone"
    device: Text | None = None
    seed: int = option(0, "decides what is drawn at random", ge=0)
    allow: list[Allowed] = Field([])


@dataclass(frozen=True)
class MergeRecipe:
    """A checked recipe, as ``given``, with its ``backbone`` resolved; the properties fill in what it leaves out.

    ``like``: whose conventions hold (``--like``, :mod:`emkit.alignment.like`).
    """

    given: Mapping[str, Any]
    backbone: str
    like: str | None = None

    @property
    def method(self) -> Method:
        return get(self.given["method"])

    @property
    def experts(self) -> dict[str, str]:
        """Expert → folder or hub id, in the recipe's order."""
        return self.given["experts"]

    @property
    def out(self) -> Path:
        """The folder to write, by its own name: no ``~`` and no links in it."""
        return resources.place(self.given["out"])

    @property
    def device(self) -> str:
        return self.given.get("device", default_device())

    @property
    def seed(self) -> int:
        return self.given.get("seed", 0)

    @property
    def tokenizer(self) -> str:
        """``base`` or an expert: whose tokenizer and chat template the merged model gets."""
        return self.given.get("tokenizer", "base")

    def allows(self, what: str) -> bool:
        """Whether the recipe lets through what a merge otherwise refuses."""
        return what in self.given.get("allow", [])

    @property
    def scale(self) -> float | None:
        """λ, where the method has a free one: the recipe's, else the default."""
        scale = self.method.scale
        return self.given.get("scale", None if scale is None else default(scale, self.backbone)[0])

    @property
    def calibration(self) -> Samples:
        """The samples of the learned methods."""
        values = layered(Samples, self.given.get("calibration", {}), backbone=self.backbone)
        return parse(Samples, values, "calibration")

    def settings(self) -> Settings:
        """Every option of the method."""
        return self.method_settings(self.method.name)

    def method_settings(self, name: str) -> Settings:
        """Every option of the method ``name``; for the one that this recipe's inherits, those of its options."""
        found = get(name)
        own = {key: value for key, value in self._options.items() if key in found.options.model_fields}
        layers = [own_defaults(found.options), own]
        if self.like is not None:
            layers = [own, layer(self._options, self._imposed(name))]
        return resolved(found, *layers, backbone=self.backbone)

    @property
    def _options(self) -> Mapping[str, Any]:
        return self.given.get("options", {})

    def _imposed(self, name: str) -> dict[str, Any]:
        """What ``--like`` puts in place of the options of the method ``name``."""
        return imposed(name, self.calibration.samples, len(self.experts), self.backbone)

    def following(self, like: str | None) -> MergeRecipe:
        """This recipe with ``--like``'s options; ``UserError`` where it gives one that is set otherwise, for a method
        that has none of them, and for a start that a sigmoid cannot have."""
        check_method(like, self.method.name)
        found = replace(self, like=like)
        if like is not None:
            check_given(found._options, found._imposed(found.method.name))
        settings = found.settings()
        if getattr(settings, "parameterisation", None) == "sigmoid":
            given = settings.model_dump()["initial"]
            initial: Any = found.scale if given == SCALE else given
            for value in initial.values() if isinstance(initial, Mapping) else [initial]:
                if not 0 < value < 1:
                    raise UserError(
                        f"the fit starts at {value:g}, and parameterisation sigmoid needs a start between 0 and 1, "
                        "both excluded: give another scale or options.initial"
                    )
        return found

    def sources(self) -> dict[str, str]:
        """Where each option's value comes from: this recipe, the paper, an author, or us."""
        theirs = {} if self.like is None else layer(self._options, self._imposed(self.method.name))
        usual = own_default if self.like is None else default
        found = {
            key: usual(field, self.backbone)[1] or "emkit's default"
            for key, field in self.method.options.model_fields.items()
        }
        return found | dict.fromkeys(self._options, "this recipe") | dict.fromkeys(theirs, LIKE_SOURCE)


def read(path: str | Path) -> dict:
    """The YAML mapping in ``path``, not yet checked; ``UserError`` if it is none."""
    if Path(path).is_dir():
        raise UserError(f"{path} is a folder, not a recipe: an expert is given with --expert")
    try:
        content = foreign.text(Path(path), named=True)
    except UserError as error:
        raise UserError(f"the recipe: {error}; `emkit init` writes one") from error
    data = load_yaml(content, str(path))
    if not isinstance(data, dict):
        raise fail(str(path), "this is no recipe: it has no keys; `emkit init` writes one")
    return {key: value for key, value in data.items() if value is not None}  # an empty section says nothing


def check(data: Mapping, where: str) -> None:
    """Raise ``UserError`` for whatever can be told of a recipe without opening a model.

    ``where`` begins the message: the recipe's file and ": ", or nothing for flags alone.
    """
    if isinstance(data.get("method"), str) and data["method"] not in METHODS:
        raise fail(f"{where}method", f"unknown method '{data['method']}': {nearest(data['method'], METHODS)}")
    if isinstance(data.get("backbone"), str) and data["backbone"] not in (AUTO, *backbones.NAMES):
        known = (AUTO, *backbones.NAMES)
        raise fail(f"{where}backbone", f"unknown backbone '{data['backbone']}': {nearest(data['backbone'], known)}")
    parse(Given, data, where)
    if not data["experts"]:
        raise fail(f"{where}experts", "no expert is named")
    for reserved in {"base"} & set(data["experts"]):
        raise fail(f"{where}experts", f"an expert cannot be called '{reserved}': give it another name")
    method = get(data["method"])
    if "scale" in data and "scale" not in method.needs:
        fixed = ": its factor is the option `scale`" if "scale" in method.options.model_fields else ": leave it out"
        raise fail(f"{where}scale", f"the method {method.name} has no free scale{fixed}")
    owner, owners = data.get("tokenizer", "base"), ("base", *data["experts"])
    if owner not in owners:
        raise fail(f"{where}tokenizer", f"'{owner}' is neither base nor an expert: {nearest(owner, owners)}")
    if method.learned and data.get("tensors", "backbone") == "all":
        raise fail(f"{where}tensors", f"{method.name} learns coefficients of the backbone's tensors only: leave it out")
    _check_files(data, method, where)
    _check_options(data, method, where)


def _check_files(data: Mapping, method: Method, where: str) -> None:
    files = data.get("calibration", {}).get("files", {})
    for name in files:
        if name not in data["experts"]:
            raise fail(f"{where}calibration.files", f"unknown expert '{name}': {nearest(name, data['experts'])}")
    missing = sorted(set(data["experts"]) - set(files))
    if method.learned and missing:
        raise fail(
            f"{where}calibration.files",
            f"{method.name} learns from prompts: the expert '{missing[0]}' has none, give it a JSONL file of them",
        )


def _check_options(data: Mapping, method: Method, where: str) -> None:
    given = data.get("options", {})
    if given:
        check_options(method, given, f"{where}options", data["experts"])
    resolved(method, given, where=f"{where}options")  # for an option that has to be given
    if "scale" in data and given.get("initial", SCALE) != SCALE:
        raise fail(where or "scale", "`scale` is where the fit starts, and so is `options.initial`: give one of them")
