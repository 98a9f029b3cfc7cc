"""A column of a table as data: `<column>.yaml` in this folder says whose benchmark it is, how it is asked and scored.

What a file says first holds everywhere. What differs by profile or backbone is said below it; from weak to strong:

1. the file's own keys;
2. what the profile says of all its columns (``protocol.every_column`` of a profile file: "ten items each");
3. the file's ``backbones: {<backbone>: …}``;
4. its ``profiles: {<profile>: …}``, and within that ``backbones: {<backbone>: …}``;
5. its ``protocols: {<name>: …}``, where the profile names one (``protocol.named``: another published way of asking);
6. what the profile says of this one (``protocol.of_column``: "GQA from a mirror").

Nothing else has to be told of a new column: a table that names it asks it. README.md explains the ones there are.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import field_validator

from emkit.config import Settings, option, parse
from emkit.errors import UserError
from emkit.files import sha256_file
from emkit.schema import check_name, fail, load_yaml, nearest
from eval.columns.kinds import HARNESSES, Column
from eval.columns.kinds import AlpacaEval as AlpacaEval  # part of what this package offers, as the next two
from eval.columns.kinds import LMEval as LMEval
from eval.columns.kinds import VLMEvalKit as VLMEvalKit

FOLDER = Path(__file__).parent
_BY_BACKBONE, _BY_PROFILE, _BY_PROTOCOL = "backbones", "profiles", "protocols"


class Generation(Settings):
    """How a merged model answers."""

    dtype: Literal["float32", "bfloat16", "float16"] = option("float32", "the model's number format")
    decoding: Literal["greedy"] = option("greedy", "how the next token is chosen")
    batch: int = option(64, "questions answered at once: fewer take less of a GPU's memory", ge=1)


class Asking(Settings):
    """What holds for all columns of a profile and backbone: the section ``protocol`` of a profile."""

    version: int = option(1, "raised whenever all columns are asked otherwise", ge=1)
    image_size: int | str | None = option(
        None, "pixels a side of drawn images; mixed: of several sizes (emkit.zoo.data.sizes); null: none are drawn"
    )
    judge_upstream: str = option(..., "where judged columns are graded: rules, or a service's address")
    judge_model: str | None = option(None, "the model that the service is asked for, whatever the harness names")
    judge_max_usd: float | None = option(
        None, "the most that the judge may cost, unless --max-usd or EMKIT_MAX_USD says another", ge=0
    )
    named: str | None = option(None, "of the columns' named ways of asking the one that is taken; none: the usual one")
    generation: Generation = option(Generation(), "how a merged model answers")
    keep_image_features: bool = option(False, "whether image features are kept for all rows (eval/features.py)")
    request_seconds: float | None = option(
        None, "longest time that a harness may take over one column of one row; none: the harness's own", ge=1
    )
    every_column: dict[str, Any] = option({}, "what all its columns say, unless their files say it of this profile")
    of_column: dict[str, dict[str, Any]] = option({}, "column → what it says, whatever its file says")

    @field_validator("image_size")
    @classmethod
    def _pixels(cls, size: int | str | None) -> int | str | None:
        if isinstance(size, str) and size != "mixed":
            raise ValueError(f"'{size}' is not a number of pixels, null or 'mixed'")
        return size


class Protocol(Asking):
    """How every column of a table is asked on one profile and backbone."""

    name: str = option(..., "<backbone>-<profile>")
    columns: dict[str, Column] = option(..., "the columns in the table's order")

    def drawn(self) -> dict[str, Any]:
        """Everything that the columns' items depend on, as plain values."""
        given = {column.items for column in self.columns.values() if column.items}
        found = {name: path for name in sorted(given) if (path := given_file(name)) is not None}
        content = {name: sha256_file(path) for name, path in found.items()}
        asked = {name: column.asked() for name, column in self.columns.items()}
        return {"version": self.version, "image_size": self.image_size, "columns": asked, "given": content}


def given_file(items: str) -> Path | None:
    """The file of a column's given items: below this folder, or, as ``package:path``, in an installed package, which is
    not imported. None where it is not there."""
    package, _, path = items.rpartition(":")
    if not package:
        return FOLDER / path if (FOLDER / path).is_file() else None
    spec = importlib.util.find_spec(package)
    folders = [] if spec is None else spec.submodule_search_locations or []
    return next((Path(folder) / path for folder in folders if (Path(folder) / path).is_file()), None)


def names() -> list[str]:
    """The columns that there are; ``UserError`` for a file whose name no column can have."""
    return sorted(check_name(path.stem, str(path), "the file's own name") for path in FOLDER.glob("*.yaml"))


def load(
    name: str,
    backbone: str = "",
    profile: str = "",
    every: Mapping[str, Any] | None = None,
    own: Mapping[str, Any] | None = None,
    named: str | None = None,
) -> Column:
    """The column called ``name`` as ``backbone`` is asked it on ``profile``; ``UserError`` for a wrong file or none.

    ``every`` is what the profile says of all its columns; what a column's harness does not have is not said of it.
    ``own`` is what it says of this one, and ``named`` the way of asking that is taken where the column has it.
    """
    if name not in names():
        raise UserError(f"unknown benchmark '{name}': {nearest(name, names())}")
    path = FOLDER / f"{name}.yaml"
    where, said = f"{path}: ", load_yaml(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(said, dict):
        raise fail(where, "is not a mapping")
    every = {key: value for key, value in (every or {}).items() if key in HARNESSES[_harness(said, where)].model_fields}
    by_backbone, by_profile, by_protocol = (
        _layers(said, key, where) for key in (_BY_BACKBONE, _BY_PROFILE, _BY_PROTOCOL)
    )
    there = dict(by_profile.get(profile, {}))
    within = _layers(there, _BY_BACKBONE, f"{where}{_BY_PROFILE}.{profile}.")
    merged = said | every | by_backbone.get(backbone, {}) | there | within.get(backbone, {})
    merged |= by_protocol.get(named or "", {}) | dict(own or {})
    return parse(HARNESSES[_harness(merged, where)], merged | {"name": name}, where)


def _harness(said: Mapping[str, Any], where: str) -> str:
    harness = str(said.get("harness"))
    if harness not in HARNESSES:
        raise fail(f"{where}harness", f"unknown value '{harness}': {nearest(harness, HARNESSES)}")
    return harness


def _layers(said: dict, key: str, where: str) -> dict[str, dict]:
    """The mapping of mappings at ``key``, taken out of ``said``."""
    layers = said.pop(key, {})
    if not isinstance(layers, dict) or not all(isinstance(layer, dict) for layer in layers.values()):
        raise fail(f"{where}{key}", "is not a mapping of settings by name")
    return layers


def protocols(columns: Iterable[str]) -> list[str]:
    """The named ways of asking that any of ``columns`` has."""
    found: dict[str, None] = {}
    for name in set(columns) & set(names()):
        path = FOLDER / f"{name}.yaml"
        said = load_yaml(path.read_text(encoding="utf-8"), str(path))
        layers = _layers(said, _BY_PROTOCOL, f"{path}: ") if isinstance(said, dict) else {}
        found |= {check_name(name, f"{path}: {_BY_PROTOCOL}", "the protocol"): None for name in layers}
    return sorted(found)


def protocol(profile: str, backbone: str, columns: Iterable[str], said: Any, where: str) -> Protocol:
    """How ``columns`` are asked of ``backbone`` on ``profile``; ``said`` is the profile's section, at ``where``."""
    asking, known = parse(Asking, said, where), {key for kind in HARNESSES.values() for key in kind.model_fields}
    for key in asking.every_column:
        if key not in known:
            raise fail(f"{where}.every_column", f"unknown key '{key}': {nearest(key, known)}")
    for name in asking.of_column:
        if name not in names():
            raise fail(f"{where}.of_column", f"unknown benchmark '{name}': {nearest(name, names())}")
    loaded, columns = {}, list(columns)
    if asking.named is not None and asking.named not in (there := protocols(columns)):
        raise fail(f"{where}.named", f"no column has the protocol '{asking.named}': {nearest(asking.named, there)}")
    for name in columns:
        try:
            own = asking.of_column.get(name)
            loaded[name] = load(name, backbone, profile, asking.every_column, own, asking.named)
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
    shared = {key: getattr(asking, key) for key in Asking.model_fields}
    return Protocol(name=f"{backbone}-{profile}", columns=loaded, **shared)
