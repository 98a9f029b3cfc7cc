"""The recipe of one merge of one's own models: what it may say, checked, with every default filled in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from emkit import backbones
from emkit.alignment.learner import SCALE
from emkit.alignment.like import SOURCE as LIKE_SOURCE
from emkit.alignment.like import check_given, check_method, imposed, resolved
from emkit.errors import UserError
from emkit.methods import REGISTRY, REQUIRED, Method, get
from emkit.methods.key import default_device
from emkit.own import defaults, resources
from emkit.recipe import check_options, method_settings
from emkit.schema import (
    Key,
    anything,
    choice,
    fail,
    integer,
    list_of,
    load_yaml,
    mapping,
    mapping_of,
    nearest,
    number,
    text,
)

METHODS = tuple(name for name in REGISTRY if name not in ("checkpoint", "reset_expert"))
AUTO = "auto"
TENSORS = ("backbone", "all")
# what a merge refuses unless its recipe allows it
ALLOW = ("rotary", "adapter_base", "identical", "tokenizer", "disk", "memory")

_CALIBRATION = {
    "files": Key(mapping_of(text), False),
    "samples": Key(integer(1), False),
    "response_tokens": Key(integer(1), False),
    "max_new_tokens": Key(integer(1), False),
}
KEYS = {
    "method": Key(text),
    "base": Key(text),
    "experts": Key(mapping_of(text)),
    "out": Key(text),
    "scale": Key(number(), False),
    "options": Key(mapping_of(anything), False),
    "calibration": Key(mapping(_CALIBRATION), False),
    "tokenizer": Key(text, False),
    "backbone": Key(choice(AUTO, *backbones.NAMES), False),
    "tensors": Key(choice(*TENSORS), False),
    "device": Key(text, False),
    "seed": Key(integer(), False),
    "allow": Key(list_of(choice(*ALLOW)), False),
}


@dataclass(frozen=True)
class MergeRecipe:
    """A checked recipe, as ``given``, with its ``backbone`` resolved; the properties fill in what it leaves out.

    ``like``: whose conventions hold (``--like``, :mod:`emkit.alignment.like`).
    It offers what methods take of a table's recipe (``device``, ``data["calibration"]`` and
    ``method_settings``), so that both run the same code.
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
        known = defaults.scale(self.method.name, self.backbone)
        return self.given.get("scale", known.value if known else None)

    @property
    def data(self) -> dict:
        """What the learned methods read: the calibration section."""
        known = {name: default.value for name, default in defaults.calibration(self.backbone).items()}
        return {"calibration": {**known, "source": "jsonl", **self.given.get("calibration", {})}}

    def settings(self) -> dict[str, Any]:
        """Every option of the method."""
        return self.method_settings(self.method.name)

    def method_settings(self, name: str) -> dict[str, Any]:
        """Every option of the method ``name``; for the one that this recipe's inherits, those of its options."""
        methods = {}
        for part in (get(name).inherits, name):
            if part is not None:
                known = {key: found.value for key, found in defaults.options(part, self.backbone).items()}
                own = {key: value for key, value in self.given.get("options", {}).items() if key in get(part).options}
                methods[part] = _deep(method_settings({}, part) | known, own)
        found = method_settings(methods, name)
        return found if self.like is None else resolved(found, self.given.get("options", {}), self._imposed(name))

    def _imposed(self, name: str) -> dict[str, Any]:
        """What ``--like`` puts in place of the options of the method ``name``."""
        return imposed(name, self.data["calibration"]["samples"], len(self.experts), self.backbone)

    def following(self, like: str | None) -> MergeRecipe:
        """This recipe with ``--like``'s options; ``UserError`` where it gives one that is set otherwise, for a method
        that has none of them, and for a start that a sigmoid cannot have."""
        check_method(like, self.method.name)
        found = replace(self, like=like)
        if like is not None:
            check_given(found.given.get("options", {}), found._imposed(found.method.name))
        settings = found.settings()
        if settings.get("parameterisation") == "sigmoid":
            initial = found.scale if settings["initial"] == SCALE else settings["initial"]
            for value in initial.values() if isinstance(initial, Mapping) else [initial]:
                if not 0 < value < 1:
                    raise UserError(
                        f"the fit starts at {value:g}, and parameterisation sigmoid needs a start between 0 and 1, "
                        "both excluded: give another scale or options.initial"
                    )
        return found

    def sources(self) -> dict[str, str]:
        """Where each option's value comes from: this recipe, the paper, an author, or us."""
        known = defaults.options(self.method.name, self.backbone)
        if self.like is not None:
            theirs = {**self._imposed(self.method.name), "hidden_weight": 0.0}
            known = {**known, **{key: defaults.Default(value, LIKE_SOURCE) for key, value in theirs.items()}}
        standard = replace(self, given={**self.given, "options": {}}).settings()
        return {
            key: "this recipe" if value != standard[key] else known[key].source if key in known else found.about
            for key, found in self.method.options.items()
            for value in [self.settings()[key]]
        }


def _deep(values: Mapping, changes: Mapping) -> dict:
    """``values`` with ``changes``; a mapping over a mapping changes the keys that it names (``optimiser``)."""
    out = dict(values)
    for key, value in changes.items():
        deep = key == "optimiser" and isinstance(value, Mapping) and isinstance(out.get(key), Mapping)
        out[key] = {**out[key], **value} if deep else value
    return out


def read(path: str | Path) -> dict:
    """The YAML mapping in ``path``, not yet checked; ``UserError`` if it is none."""
    if Path(path).is_dir():
        raise UserError(f"{path} is a folder, not a recipe: an expert is given with --expert")
    try:
        content = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UserError(f"cannot read the recipe {path}: {reason}; `emkit init {path}` writes one") from error
    data = load_yaml(content, str(path))
    if not isinstance(data, dict):
        raise fail(str(path), "this is no recipe: it has no keys; `emkit init` writes one")
    return data


def check(data: Mapping, where: str) -> None:
    """Raise ``UserError`` for whatever can be told of a recipe without opening a model.

    ``where`` begins the message: the recipe's file and ": ", or nothing for flags alone.
    """
    if isinstance(data.get("method"), str) and data["method"] not in METHODS:
        raise fail(f"{where}method", f"unknown method '{data['method']}': {nearest(data['method'], METHODS)}")
    if isinstance(data.get("backbone"), str) and data["backbone"] not in (AUTO, *backbones.NAMES):
        known = (AUTO, *backbones.NAMES)
        raise fail(f"{where}backbone", f"unknown backbone '{data['backbone']}': {nearest(data['backbone'], known)}")
    mapping(KEYS)(data, where)
    if not data["experts"]:
        raise fail(f"{where}experts", "no expert is named")
    for reserved in {"base"} & set(data["experts"]):
        raise fail(f"{where}experts", f"an expert cannot be called '{reserved}': give it another name")
    method = get(data["method"])
    if "scale" in data and "scale" not in method.needs:
        fixed = ": its factor is the option `scale`" if "scale" in method.options else ": leave it out"
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
    """The options that are given, completed by what a partly given one leaves out."""
    given = data.get("options", {})
    if not given:
        return
    known = {key: found.value for key, found in defaults.options(method.name, AUTO).items()}
    known |= {key: o.default for key, o in method.options.items() if o.default is not REQUIRED and key not in known}
    complete = _deep(known, given)
    check_options(method, {key: complete[key] for key in given}, f"{where}options", required=())
    if "scale" in data and given.get("initial", SCALE) != SCALE:
        raise fail(where or "scale", "`scale` is where the fit starts, and so is `options.initial`: give one of them")
    for key in ("beta", "initial"):
        if isinstance(given.get(key), Mapping):
            for name in given[key]:
                if name not in data["experts"]:
                    raise fail(f"{where}options.{key}", f"unknown expert '{name}': {nearest(name, data['experts'])}")
            missing = sorted(set(data["experts"]) - set(given[key])) if key == "initial" else []
            if missing:
                raise fail(f"{where}options.{key}", f"the expert '{missing[0]}' has no value")
