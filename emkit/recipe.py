"""Recipes: everything a table depends on, in one YAML file, checked before anything long starts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emkit import backbones
from emkit.alignment.like import imposed, resolved
from emkit.errors import UserError
from emkit.files import sha256_json
from emkit.methods import REGISTRY, REQUIRED, Method, get
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
    nullable,
    number,
    text,
)

_ROW = mapping(
    {
        "id": Key(text),
        "label": Key(text),
        "method": Key(nullable(choice(*REGISTRY))),
        "model": Key(text, False),
        "scale": Key(number(), False),
        "options": Key(mapping_of(anything), False),
    }
)
_RECIPE = mapping(
    {
        "profile": Key(text),
        "backbone": Key(text),
        "zoo": Key(nullable(text), False),
        "device": Key(text, False),
        "models": Key(
            mapping(
                {"base": Key(text), "experts": Key(mapping_of(text)), "mixture": Key(nullable(text), False)},
            )
        ),
        "calibration": Key(
            mapping(
                {
                    "samples": Key(integer(1)),
                    "response_tokens": Key(integer(1)),
                    "split": Key(choice("train", "validation"), False),
                    "source": Key(choice("zoo", "jsonl"), False),
                    "files": Key(mapping_of(text), False),
                    "max_new_tokens": Key(integer(1), False),
                }
            )
        ),
        "scale": Key(mapping({"grid": Key(list_of(number())), "rule": Key(text)})),
        "methods": Key(mapping({name: Key(anything, False) for name, found in REGISTRY.items() if found.options})),
        "sources": Key(mapping_of(text), False),
        "rows": Key(list_of(_ROW)),
        "seeds": Key(list_of(integer())),
        "benchmarks": Key(list_of(text)),
        "protocol": Key(text),
    }
)


@dataclass(frozen=True)
class Recipe:
    """A checked recipe: ``data`` as it stands in the file ``path`` (paths in it are relative to the working folder).

    ``like``: whose conventions hold in place of its own (``--like``, :mod:`emkit.alignment.like`).
    """

    path: Path
    data: Mapping[str, Any]
    like: str | None = None

    @property
    def sha256(self) -> str:
        """Hash of the content; comments and layout of the file do not matter."""
        return sha256_json(self.data)

    @property
    def profile(self) -> str:
        return self.data["profile"]

    @property
    def backbone(self) -> str:
        return self.data["backbone"]

    @property
    def device(self) -> str:
        return self.data.get("device", "cpu")

    @property
    def experts(self) -> dict[str, str]:
        """Expert → checkpoint, in the recipe's order."""
        return self.data["models"]["experts"]

    @property
    def rows(self) -> list[dict]:
        return self.data["rows"]

    @property
    def seeds(self) -> list[int]:
        return self.data["seeds"]

    def row(self, row: str) -> dict:
        """The row with this id; ``UserError`` for an unknown one."""
        for entry in self.rows:
            if entry["id"] == row:
                return entry
        raise UserError(f"{self.path}: unknown row '{row}': {nearest(row, [entry['id'] for entry in self.rows])}")

    def model(self, name: str) -> str:
        """Checkpoint of ``base``, ``mixture`` or an expert."""
        models = {"base": self.data["models"]["base"], "mixture": self.data["models"].get("mixture"), **self.experts}
        if models.get(name) is None:
            raise UserError(
                f"{self.path}: there is no model '{name}': {nearest(name, [m for m in models if models[m]])}"
            )
        return models[name]

    def settings(self, row: Mapping) -> dict:
        """The value of every option of a row's method: its defaults, the recipe's ``methods`` (those that it inherits
        first), then the row's own ``options``; with ``like`` what that puts in their place."""
        return self._like(row["method"], row.get("options", {}))

    def method_settings(self, method: str) -> dict:
        """:meth:`settings` of a row without options of its own."""
        return self._like(method, {})

    def _like(self, method: str, own: Mapping) -> dict:
        methods = self.data["methods"]
        found = method_settings(methods, method) | own
        if self.like is None:
            return found
        given = {*own, *(key for name in (method, get(method).inherits) for key in methods.get(name, {}))}
        samples = self.data["calibration"]["samples"]
        return resolved(found, given, imposed(method, samples, len(self.experts), self.backbone))


def method_settings(methods: Mapping[str, Mapping], name: str) -> dict:
    """Every option of the method ``name``: its defaults, the settings that it inherits, then its own in ``methods``."""
    found = get(name)
    defaults = {key: option.default for key, option in found.options.items() if option.default is not REQUIRED}
    inherited = method_settings(methods, found.inherits) if found.inherits else {}
    return defaults | inherited | methods.get(name, {})


def _shipped(path: Path) -> str:
    """Which profiles and backbones there are, for a path that looks like that of a shipped recipe."""
    folder = Path(__file__).resolve().parent / "recipes"
    if path.resolve().parent.parent != folder:
        return ""
    names = [found.relative_to(folder) for found in sorted(folder.glob("[!z]*/*.yaml"))]
    profiles, backbones = ({getattr(name, of) for name in names} for of in ("parent", "stem"))
    return f"; profiles: {', '.join(sorted(map(str, profiles)))}; backbones: {', '.join(sorted(backbones))}"


def load(path: str | Path) -> Recipe:
    """Read and check a recipe; ``UserError`` naming file, key and, for a typing error, the nearest valid key."""
    path = Path(path)
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read the recipe {path}: {error.strerror}{_shipped(path)}") from error
    data = load_yaml(content, str(path))
    where = f"{path}: "
    _RECIPE(data, where)
    if data["backbone"] not in backbones.NAMES:
        raise fail(
            f"{where}backbone", f"unknown backbone '{data['backbone']}': {nearest(data['backbone'], backbones.NAMES)}"
        )
    recipe = Recipe(path, data)
    _check_methods(recipe, where)
    _check_experts(data, where)
    _check_rows(recipe, where)
    _check_sources(data, where)
    return recipe


def _check_rows(recipe: Recipe, where: str) -> None:
    ids = [row["id"] for row in recipe.rows]
    for i, row in enumerate(recipe.rows):
        here = f"{where}rows[{i}] ('{row['id']}')"
        if ids.count(row["id"]) > 1:
            raise fail(here, "this id is given to more than one row")
        if (row["method"] in ("checkpoint", "reset_expert")) != ("model" in row):
            raise fail(here, "the methods checkpoint and reset_expert, and no others, need the key 'model'")
        if "model" in row:
            recipe.model(row["model"])
        if row["method"] == "reset_expert" and row["model"] not in recipe.experts:
            raise fail(here, f"reset_expert needs an expert: {nearest(row['model'], recipe.experts)}")
        if row["method"] is None:
            continue
        method = get(row["method"])
        if "scale" in row and "scale" not in method.needs:
            raise fail(here, f"the method {method.name} has no free scale: leave out the key 'scale'")
        if "options" in row:
            check_options(method, row["options"], f"{here}.options", required=())
        _check_complete(recipe, method, row, where)


def _check_methods(recipe: Recipe, where: str) -> None:
    """``methods``: options that their method has, of the right type, and every one that has no default."""
    for name, settings in recipe.data["methods"].items():
        method = get(name)
        inherited = get(method.inherits).options if method.inherits else {}
        required = [
            key for key, option in method.options.items() if option.default is REQUIRED and key not in inherited
        ]
        check_options(method, settings, f"{where}methods.{name}", required)


def check_options(method: Method, given: Any, where: str, required: Iterable[str]) -> None:
    """Raise ``UserError`` unless ``given`` are options of the method, of the right type, with all ``required``."""
    if not method.options:
        raise fail(where, f"the method {method.name} has no options")
    mapping({key: Key(option.check, key in required) for key, option in method.options.items()})(given, where)


def _check_complete(recipe: Recipe, method: Method, row: Mapping, where: str) -> None:
    """A row's method has a value for every option: one without a default has to be in the recipe."""
    settings = recipe.settings(row)
    missing = next((key for key in method.options if key not in settings), None)
    if missing is not None:
        owner = method.inherits if method.inherits and missing in get(method.inherits).options else method.name
        raise fail(f"{where}methods", f"the key '{owner}' is missing: row '{row['id']}' needs its '{missing}'")


def _check_experts(data: Mapping, where: str) -> None:
    """Per-expert values must name experts, and a jsonl source must have a file for each."""
    experts = data["models"]["experts"]
    if not experts:
        raise fail(f"{where}models.experts", "no expert is named")
    for method, settings in data["methods"].items():
        for key in ("beta", "initial"):
            if isinstance(settings.get(key), dict):
                for name in settings[key]:
                    if name not in experts:
                        raise fail(
                            f"{where}methods.{method}.{key}", f"unknown expert '{name}': {nearest(name, experts)}"
                        )
        missing = sorted(set(experts) - set(settings["initial"])) if isinstance(settings.get("initial"), dict) else []
        if missing:
            raise fail(f"{where}methods.{method}.initial", f"the expert '{missing[0]}' has no value")
    if data["calibration"].get("source") == "jsonl":
        for name in experts:
            if name not in data["calibration"].get("files", {}):
                raise fail(f"{where}calibration.files", f"the task '{name}' has no file")


def _check_sources(data: Mapping, where: str) -> None:
    """A source must belong to a value that is there."""
    for dotted in data.get("sources", {}):
        at: Any = data
        for key in dotted.split("."):
            if not isinstance(at, dict) or key not in at:
                known = at if isinstance(at, dict) else []
                raise fail(f"{where}sources", f"'{dotted}' is no key of this recipe: {nearest(key, known)}")
            at = at[key]
