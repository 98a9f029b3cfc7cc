"""Recipes: everything a table depends on, in one YAML file, checked before anything long starts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emkit import backbones
from emkit.errors import UserError
from emkit.files import sha256_json
from emkit.fit import PARAMETERISATIONS, SCHEDULES, FitOptions, Optimiser
from emkit.importance import FIXED, NORMALISE
from emkit.objectives import HIDDEN_LOSSES, REGULARISERS, TOKENS
from emkit.schema import (
    Key,
    choice,
    either,
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

SCALE = "scale of task_arithmetic"  # the initial value "validated by Task Arithmetic" (Section 3.2)
METHODS = (
    "checkpoint",
    "reset_expert",
    "weight_average",
    "task_arithmetic",
    "expert_merging",
    "expert_merging_pp",
)

_OPTIMISER = mapping(
    {
        "name": Key(choice("adamw")),
        "lr": Key(number(0)),
        "weight_decay": Key(number(0)),
        "steps": Key(integer(1)),
        "schedule": Key(choice(*SCHEDULES)),
        "batch": Key(either(integer(1), choice("all")), required=False),
        "clip": Key(nullable(number(0)), required=False),
        "period": Key(integer(1), required=False),
    }
)
_FIT = {
    "initial": either(number(), mapping_of(number()), choice(SCALE)),
    "parameterisation": choice(*PARAMETERISATIONS),
    "temperature": number(1e-6),
    "beta": mapping_of(number(0)),
    "gamma": number(0),
    "regulariser": choice(*REGULARISERS),
    "hidden_loss": choice(*HIDDEN_LOSSES),
    "hidden_layer": either(integer(1), choice("middle")),
    "tokens": choice(*TOKENS),
    "optimiser": _OPTIMISER,
}
_WEIGHTS = {"hidden_weight": number(0), "logit_weight": number(0)}
_CHUNKS = {"kappa": number(0), "budget": number(0), "fixed": choice(*FIXED), "start": choice(*FIXED)}
_FIT_KEYS = {name: Key(check) for name, check in _FIT.items()} | {n: Key(c, False) for n, c in _WEIGHTS.items()}
# what expert_merging_pp leaves out is as in expert_merging
_PP_KEYS = (
    {name: Key(check, False) for name, check in {**_FIT, **_WEIGHTS}.items()}
    | {name: Key(check) for name, check in _CHUNKS.items()}
    | {"normalise": Key(choice(*NORMALISE), False)}
)
_ROW = mapping(
    {
        "id": Key(text),
        "label": Key(text),
        "method": Key(nullable(choice(*METHODS))),
        "model": Key(text, False),
        "scale": Key(number(), False),
        "options": Key(mapping_of(lambda value, where: None), False),
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
        "methods": Key(
            mapping({"expert_merging": Key(mapping(_FIT_KEYS)), "expert_merging_pp": Key(mapping(_PP_KEYS))})
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
    """A checked recipe: ``data`` as it stands in the file ``path`` (paths in it are relative to the working folder)."""

    path: Path
    data: Mapping[str, Any]

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

    def settings(self, row: dict) -> dict:
        """A learned row's settings: its method's (``expert_merging_pp`` inherits), then the row's own options."""
        methods = self.data["methods"]
        merged = dict(methods["expert_merging"])
        if row["method"] == "expert_merging_pp":
            merged |= methods["expert_merging_pp"]
        return merged | row.get("options", {})

    def fit_options(self, settings: Mapping) -> FitOptions:
        """The part of :meth:`settings` that is the fit's."""
        keys = ("parameterisation", "temperature", "beta", "gamma", "regulariser", "hidden_loss", *_WEIGHTS)
        given = {key: settings[key] for key in keys if key in settings}
        return FitOptions(**given, optimiser=Optimiser(**settings["optimiser"]))


def load(path: str | Path) -> Recipe:
    """Read and check a recipe; ``UserError`` naming file, key and, for a typing error, the nearest valid key."""
    path = Path(path)
    try:
        content = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read the recipe {path}: {error.strerror}") from error
    data = load_yaml(content, str(path))
    where = f"{path}: "
    _RECIPE(data, where)
    if data["backbone"] not in backbones.NAMES:
        raise fail(
            f"{where}backbone", f"unknown backbone '{data['backbone']}': {nearest(data['backbone'], backbones.NAMES)}"
        )
    recipe = Recipe(path, data)
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
        if "options" in row:
            if row["method"] not in ("expert_merging", "expert_merging_pp"):
                raise fail(here, "only learned methods take 'options'")
            keys = _PP_KEYS if row["method"] == "expert_merging_pp" else _FIT_KEYS
            mapping({key: Key(rule.check, False) for key, rule in keys.items()})(row["options"], f"{here}.options")


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
