"""What the files of a PEFT adapter hold, read and held against the base: factors, and tensors saved whole."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from emkit import foreign
from emkit.bounds import bounded
from emkit.checkpoints import Checkpoint
from emkit.errors import UserError
from emkit.layouts import Layout

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PART = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(?:\.default)?(?:\.weight)?")
# what changes the rule, and is refused rather than ignored
_REFUSED = {
    "use_dora": "DoRA",
    "layer_replication": "replicated layers",
    "lora_bias": "biases in the adapter (lora_bias)",
    "trainable_token_indices": "trained tokens (trainable_token_indices)",
    "target_parameters": "adapted parameters that are no modules (target_parameters)",
    "alora_invocation_tokens": "an activated adapter (aLoRA)",
    "use_qalora": "QALoRA",
    "use_bdlora": "block-diagonal adapters",
    **{f"{kind}_config": f"the variant {kind}" for kind in ("arrow", "kasa", "monteclora", "velora")},
}
_PATTERNS = {"rank_pattern": "r", "alpha_pattern": "lora_alpha"}  # by module, and what holds for the others
_MOST_PATTERNS, _LONGEST_PATTERN = 10_000, 500
_KINDS = {"base_model_name_or_path": str, "use_rslora": bool, "fan_in_fan_out": bool}
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # start values that came with another base


@dataclass(frozen=True)
class Factors:
    """What an adapter adds to one tensor: ``scaling`` · B A, transposed where the weight is stored [in, out].

    ``on``: the tensor that it is added to, where PEFT saved that beside the factors; None: the base's.
    """

    a: str
    b: str
    scaling: float
    transposed: bool
    on: str | None = None


@dataclass(frozen=True)
class Saved:
    """A tensor that stands whole in the adapter's file, in the base's place: trained with it (``modules_to_save``) or
    saved with it (embeddings)."""

    key: str


def read_config(folder: Path, label: str) -> dict[str, Any]:
    """The adapter's configuration; ``UserError`` for anything but plain LoRA."""
    where = f"expert '{label}' ({folder})"
    config = foreign.mapping(folder / CONFIG)
    try:
        kind, rank, alpha = config["peft_type"], config["r"], config["lora_alpha"]
        if kind == "LORA" and not (rank > 0 and math.isfinite(alpha)):
            raise ValueError
        for key, kinds in _KINDS.items():
            if not isinstance(config.get(key), kinds | None):
                raise TypeError
        str(config.get("base_model_name_or_path")).encode()  # half a surrogate pair is in no folder's name
        for patterns in (config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}):
            if not all(math.isfinite(value) for value in patterns.values()) or len(patterns) > _MOST_PATTERNS:
                raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise UserError(f"{where}: {CONFIG} is not that of a LoRA adapter: save it again with PEFT") from error
    if kind != "LORA":
        raise UserError(f"{where} is a {kind} adapter; only LoRA is merged: merge it into its base with PEFT first")
    refused = [words for key, words in _REFUSED.items() if config.get(key)]
    if config.get("bias", "none") != "none":
        refused.append("trained biases")
    if str(config.get("init_lora_weights", "")).lower().startswith(_CHANGES_BASE):
        refused.append(f"start values ({config['init_lora_weights']}) that changed the base")
    if refused:
        raise UserError(
            f"{where}: an adapter with {refused[0]} is not supported: merge it into its base with PEFT first"
        )
    return config


def weights_file(folder: Path, label: str) -> Path:
    if (folder / WEIGHTS).is_file():
        return folder / WEIGHTS
    if (folder / "adapter_model.bin").is_file():
        raise UserError(
            f"expert '{label}' ({folder}) holds pickled weights (adapter_model.bin), which emkit refuses because "
            "loading a pickle can run any code: save it again with safe_serialization"
        )
    raise UserError(f"expert '{label}': no adapter at {folder}: there is {CONFIG} but no {WEIGHTS}; download it again")


def parts(
    factors, config: Mapping, base: Checkpoint, layout: Layout, label: str
) -> tuple[dict[str, Factors | Saved], list[str]]:
    """Base tensor → what the adapter has for it, and what the base has no place for; ``UserError`` where an adapter
    does not fit the base."""
    where = f"expert '{label}'"
    tensors = {name: tensor for tensor in base.names for name in (layout.parameter(tensor), tensor)}
    modules, saved = _modules(factors, where)
    ranks, alphas = (_values(config, key, usual, modules, where) for key, usual in _PATTERNS.items())
    found: dict[str, Factors | Saved] = {}
    beyond = []
    for module, sides in modules.items():
        weight = f"{module}.weight"
        parameter = layout.parameter(weight)
        name = tensors.get(weight) or tensors.get(parameter)
        if name is None and parameter in layout.tied:
            beyond.append(f"an adapted {module}, which in the base is tied to the embedding")
            continue
        if name is None:
            raise UserError(f"{where} is an adapter for another base: it adapts '{module}', which the base has not")
        if set(sides) != {"A", "B"}:
            raise UserError(f"{where}: '{module}' has only one of its two factors: download the adapter again")
        given = ranks[module], alphas[module]
        made = _factors(module, sides, factors, config, given, layout.module(parameter), where)
        shape = _product(made, factors)
        if shape != base.info(name).shape and layout.of_vocabulary(parameter):
            beyond.append(f"an adapted {module} of {shape[0]} tokens, where the base has {_shape(base, name)[0]}")
        elif shape != base.info(name).shape:
            raise UserError(
                f"{where} is an adapter for another base: '{module}' has shape {list(shape)} there, "
                f"{_shape(base, name)} here"
            )
        else:
            found[name] = made
    for own, key in saved.items():
        name = tensors.get(own) or tensors.get(layout.parameter(own))
        shape = tuple(factors.get_slice(key).get_shape())
        if name is None:
            beyond.append(f"{own} saved whole, which the base has not")
        elif base.info(name).shape != shape:
            beyond.append(f"{own} saved whole in another shape, {list(shape)} where the base has {_shape(base, name)}")
        else:
            under = found.get(name)
            found[name] = replace(under, on=key) if isinstance(under, Factors) else Saved(key)
    return found, beyond


def _shape(base: Checkpoint, name: str) -> list[int]:
    return list(base.info(name).shape)


def _modules(factors, where: str) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """Module → side → key of its factor, and the tensors saved whole → key."""
    parts: dict[str, dict[str, str]] = {}
    saved = {}
    for key in sorted(factors.keys()):
        own = key.removeprefix(_PREFIX)
        match = _PART.fullmatch(own)
        if match is not None:
            parts.setdefault(match["module"], {})[match["side"]] = key
        elif "lora_" in own:
            raise UserError(
                f"{where}: the adapter's tensor '{key}' is no LoRA factor of a linear layer or an embedding: not "
                "supported, merge it into its base with PEFT first"
            )
        else:
            for wrapper in (".modules_to_save.default.", ".modules_to_save.", ".base_layer."):
                own = own.replace(wrapper, ".")
            if ".original_module." not in own:  # what PEFT froze when it made a copy to train
                saved[own] = key
    if not parts:
        raise UserError(f"{where}: the adapter is empty: it has no factors")
    return parts, saved


def _product(made: Factors, factors) -> tuple[int, ...]:
    """The shape of what is added."""
    (rows, _), (_, columns) = (tuple(factors.get_slice(key).get_shape()) for key in (made.b, made.a))
    return (columns, rows) if made.transposed else (rows, columns)


def _factors(
    module: str,
    sides: dict,
    factors,
    config: Mapping,
    given: tuple[float, float],
    adapted: torch.nn.Module | None,
    where: str,
) -> Factors:
    """``given``: rank and alpha by the configuration. ``adapted``: the module of the base's class, which says how its
    weight is stored; None: the config does."""
    a, b = (tuple(factors.get_slice(sides[side]).get_shape()) for side in "AB")
    embedding = ".lora_embedding_" in sides["A"]  # its weight is [tokens, d], its factors are [r, tokens] and [d, r]
    # PEFT goes by the layer, whatever the configuration says: it writes there what held for the last one
    turned = type(adapted).__name__ == "Conv1D" if adapted is not None else bool(config.get("fan_in_fan_out"))
    transposed = embedding or turned
    if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
        raise UserError(f"{where}: the factors of '{module}' have shapes {list(a)} and {list(b)}: no linear layer's")
    rank, alpha = given
    if rank != a[0]:
        raise UserError(f"{where}: '{module}' has rank {a[0]}, {CONFIG} says {rank}: one of the two files is another's")
    return Factors(sides["A"], sides["B"], alpha / (math.sqrt(rank) if config.get("use_rslora") else rank), transposed)


def _values(config: Mapping, key: str, usual: str, modules: Iterable[str], where: str) -> dict[str, float]:
    """Module → the value of the first pattern that its name ends with, as PEFT matches them; else the usual one."""
    patterns, found = config.get(key) or {}, dict.fromkeys(modules, config[usual])
    if not patterns:
        return found
    if (longest := max(map(len, patterns))) > _LONGEST_PATTERN:
        raise UserError(f"{where}: {key} of {CONFIG} has a pattern of {longest} characters: save it again with PEFT")
    try:
        with bounded(f"{where}: {key} of {CONFIG}"):
            known = [(re.compile(rf"(.*\.)?({pattern})$"), value) for pattern, value in patterns.items()]
            for module in found:
                found[module] = next((value for pattern, value in known if pattern.match(module)), found[module])
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(f"{where}: {key} of {CONFIG} has a pattern that is none ({error}): save it again") from error
    return found
