"""Recipes: everything a table depends on, in one YAML file, checked before anything long starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emkit import backbones
from emkit.alignment.like import imposed, layer
from emkit.alignment.sources import ZooSamples
from emkit.config import Settings, parse
from emkit.errors import UserError
from emkit.files import sha256_json
from emkit.methods import check_options, get, registry, resolved
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
        "method": Key(nullable(choice(*registry()))),
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
        "calibration": Key(anything),
        "scale": Key(mapping({"grid": Key(list_of(number())), "rule": Key(text)})),
        "methods": Key(
            mapping({name: Key(anything, False) for name, found in registry().items() if found.options.model_fields})
        ),
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
    def calibration(self) -> ZooSamples:
        """The samples of the learned methods."""
        return parse(ZooSamples, self.data["calibration"], f"{self.path}: calibration")

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

    def settings(self, row: Mapping) -> Settings:
        """The options of a row's method: its defaults, the recipe's ``methods`` (those that it inherits first), then
        the row's own ``options``; with ``like`` what that puts in their place. ``UserError`` for one that has no value.
        """
        return self._settings(row["method"], row.get("options", {}))

    def method_settings(self, method: str) -> Settings:
        """:meth:`settings` of a row without options of its own."""
        return self._settings(method, {})

    def _settings(self, name: str, own: Mapping) -> Settings:
        method, sections = get(name), self.data["methods"]
        layers = [sections.get(method.inherits, {}), sections.get(name, {}), own]
        if self.like is not None:
            theirs = imposed(name, self.calibration.samples, len(self.experts), self.backbone)
            layers.append(layer({*layers[0], *layers[1], *layers[2]}, theirs))
        return resolved(method, *layers, backbone=self.backbone, where=f"{self.path}: methods.{name}")


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
    _check_experts(data, where)
    _check_methods(recipe, where)
    _check_rows(recipe, where)
    _check_sources(data, where)
    return recipe


def _check_rows(recipe: Recipe, where: str) -> None:
    ids = [row["id"] for row in recipe.rows]
    for i, row in enumerate(recipe.rows):
        here = f"{where}rows[{i}] ('{row['id']}')"
        if ids.count(row["id"]) > 1:
            raise fail(here, "this id is given to more than one row")
        method = None if row["method"] is None else get(row["method"])
        if (method is not None and not method.merges) != ("model" in row):
            alone = " and ".join(found.name for found in registry().values() if not found.merges)
            raise fail(here, f"the methods {alone}, and no others, need the key 'model'")
        if method is None:
            continue
        if "model" in row:
            recipe.model(row["model"])
        if "expert" in method.needs and row["model"] not in recipe.experts:
            raise fail(here, f"{method.name} needs an expert: {nearest(row['model'], recipe.experts)}")
        if "scale" in row and "scale" not in method.needs:
            raise fail(here, f"the method {method.name} has no free scale: leave out the key 'scale'")
        if "options" in row:
            check_options(method, row["options"], f"{here}.options", recipe.experts)
        recipe.settings(row)


def _check_methods(recipe: Recipe, where: str) -> None:
    """``methods``: options that their method has, of the right type."""
    for name, settings in recipe.data["methods"].items():
        check_options(get(name), settings, f"{where}methods.{name}", recipe.experts)


def _check_experts(data: Mapping, where: str) -> None:
    """There are experts, and a jsonl source has a file for each."""
    experts = data["models"]["experts"]
    if not experts:
        raise fail(f"{where}models.experts", "no expert is named")
    samples = parse(ZooSamples, data["calibration"], f"{where}calibration")
    if samples.source == "jsonl":
        for name in experts:
            if name not in samples.files:
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
