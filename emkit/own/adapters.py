"""LoRA adapters as experts: a checkpoint that reads as the base with the adapter merged in, by PEFT's rule."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from emkit.checkpoints import Checkpoint, Look, TensorInfo, _reader, check_finite, file_identities, sha256_tensors
from emkit.errors import UserError
from emkit.files import sha256_json
from emkit.shards import INDEX, SINGLE

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
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # start values that came with another base


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter; ``UserError`` where it holds a whole model too."""
    if not (folder / CONFIG).is_file():
        return False
    whole = next((name for name in (SINGLE, INDEX) if (folder / name).is_file()), None)
    if whole is not None and (folder / WEIGHTS).is_file():
        raise UserError(
            f"{folder} holds an adapter ({WEIGHTS}) and a whole model ({whole}): which of the two is the expert? Move "
            "the other away"
        )
    return whole is None


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


class AdapterCheckpoint(Checkpoint):
    """A base with one LoRA adapter merged in, computed tensor by tensor: nothing is written, only factors are read.

    PEFT's rule (``LoraLayer.get_delta_weight``, Hu et al., 2022): W = W_base + s · B A with s = ``lora_alpha`` / r, or
    ``lora_alpha`` / √r with ``use_rslora``; ``rank_pattern`` and ``alpha_pattern`` may give single modules their own.
    The sum is in fp32 (fp64 for a fp64 base) and stays so: rounding it to a 16-bit base first, as PEFT's ``merge``
    does, would lose much of a small task vector.

    ``parameter_name`` says which parameter a tensor becomes, ``places`` are those of the base's class. ``adapted``:
    base tensor → what the adapter has for it. ``beyond``: what it has that the base has no place for, in words.
    """

    def __init__(
        self,
        folder: Path,
        base: Checkpoint,
        parameter_name: Callable[[str], str],
        label: str,
        places: Iterable[str] = (),
    ):
        super().__init__(folder, dict(base._files))
        self.base, self.label = base, label
        self.config = _config(folder, label)
        self._factors = _reader(_weights(folder, label))
        self.adapted, self.beyond = _parts(self._factors, self.config, base, parameter_name, label, frozenset(places))

    def info(self, name: str) -> TensorInfo:
        info = self.base.info(name)
        return TensorInfo(_wide(info.dtype), info.shape) if name in self.adapted else info

    def read(self, name: str) -> torch.Tensor:
        stored = self.base.read(name)
        if name not in self.adapted:
            return stored
        factors, wide = self.adapted[name], _wide(stored.dtype)
        if isinstance(factors, Saved):
            return self._factors.get_tensor(factors.key).to(wide)
        if factors.on is not None:
            stored = self._factors.get_tensor(factors.on)
        a, b = (self._factors.get_tensor(part).to(wide) for part in (factors.a, factors.b))
        delta = b @ a
        return stored.to(wide) + factors.scaling * (delta.T if factors.transposed else delta)

    def identity(self) -> list[list]:
        return [*self.base.identity(), *file_identities([self.path / CONFIG, _weights(self.path, self.label)])]

    def scan(self, where: str, look: Look | None = None) -> None:
        """Raise ``UserError`` for NaN or infinity in the factors (the base is scanned by itself).

        ``look`` is shown the tensors that the adapter changes.
        """
        for name in sorted(self._factors.keys()):
            check_finite(name, self._factors.get_tensor(name), where)
        for name in sorted(self.adapted) if look is not None else ():
            look(name, self.read(name))

    @cached_property
    def _sha256(self) -> str:
        names = sorted(self._factors.keys())
        rule = {
            name: found.key if isinstance(found, Saved) else [found.scaling, found.transposed, found.on]
            for name, found in self.adapted.items()
        }
        factors = sha256_tensors((name, self._factors.get_tensor(name)) for name in names)
        return sha256_json({"base": self.base.sha256(), "factors": factors, "rule": rule})


def check_base(adapter: AdapterCheckpoint, base_name: str, base_folder: Path) -> None:
    """Raise ``UserError`` when the adapter says that it was trained on another base than the recipe's.

    Names agree when they are the same, lead to the same folder, or end alike (``mistralai/Mistral-7B-v0.1`` and
    ``/models/Mistral-7B-v0.1``), or when the base's own configuration has that name.
    """
    trained_on = adapter.config.get("base_model_name_or_path")
    if not trained_on:
        return
    own = _name_in(base_folder)
    ends = {Path(name.partition("@")[0]).name.lower() for name in (base_name, own, str(base_folder.resolve())) if name}
    if Path(trained_on).name.lower() in ends or Path(trained_on).resolve() == base_folder.resolve():
        return
    raise UserError(
        f"expert '{adapter.label}' ({adapter.path}) says that it was trained on {trained_on}, the base here is "
        f"{base_name}; give that base, or, if they are the same model, `--allow adapter_base`"
    )


def _name_in(folder: Path) -> str | None:
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_name_or_path")
    except (OSError, ValueError):
        return None


def _config(folder: Path, label: str) -> dict[str, Any]:
    """The adapter's configuration; ``UserError`` for anything but plain LoRA."""
    where = f"expert '{label}' ({folder})"
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        kind, rank, alpha = config["peft_type"], config["r"], config["lora_alpha"]
        if kind == "LORA" and not (rank > 0 and math.isfinite(alpha)):
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError) as error:
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


def _weights(folder: Path, label: str) -> Path:
    if (folder / WEIGHTS).is_file():
        return folder / WEIGHTS
    if (folder / "adapter_model.bin").is_file():
        raise UserError(
            f"expert '{label}' ({folder}) holds pickled weights (adapter_model.bin), which emkit refuses because "
            "loading a pickle can run any code: save it again with safe_serialization"
        )
    raise UserError(f"expert '{label}': no adapter at {folder}: there is {CONFIG} but no {WEIGHTS}; download it again")


def _parts(
    factors, config: Mapping, base: Checkpoint, parameter_name, label: str, places: frozenset[str]
) -> tuple[dict[str, Factors | Saved], list[str]]:
    """Base tensor → what the adapter has for it, and what the base has no place for; ``UserError`` where an adapter
    does not fit the base."""
    where = f"expert '{label}'"
    tensors = {name: tensor for tensor in base.names for name in (parameter_name(tensor), tensor)}
    modules, saved = _modules(factors, where)
    found: dict[str, Factors | Saved] = {}
    beyond = []
    for module, sides in modules.items():
        weight = f"{module}.weight"
        name = tensors.get(weight) or tensors.get(parameter_name(weight))
        if name is None and parameter_name(weight) in places:  # a head that is no tensor of its own
            beyond.append(f"an adapted {module}, which in the base is tied to the embedding")
            continue
        if name is None:
            raise UserError(f"{where} is an adapter for another base: it adapts '{module}', which the base has not")
        if set(sides) != {"A", "B"}:
            raise UserError(f"{where}: '{module}' has only one of its two factors: download the adapter again")
        found[name] = _factors(module, sides, factors, config, base.info(name).shape, where)
    for own, key in saved.items():
        name = tensors.get(own) or tensors.get(parameter_name(own))
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
            saved[own.replace(".modules_to_save.default.", ".").replace(".base_layer.", ".")] = key
    if not parts:
        raise UserError(f"{where}: the adapter is empty: it has no factors")
    return parts, saved


def _factors(module: str, sides: dict, factors, config: Mapping, shape: tuple[int, ...], where: str) -> Factors:
    a, b = (tuple(factors.get_slice(sides[side]).get_shape()) for side in "AB")
    embedding = ".lora_embedding_" in sides["A"]  # its weight is [tokens, d], its factors are [r, tokens] and [d, r]
    transposed = embedding or bool(config.get("fan_in_fan_out"))
    if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
        raise UserError(f"{where}: the factors of '{module}' have shapes {list(a)} and {list(b)}: no linear layer's")
    if (b[0], a[1]) != (shape[::-1] if transposed else shape):
        raise UserError(
            f"{where} is an adapter for another base: '{module}' has shape {[b[0], a[1]]} there, {list(shape)} here"
        )
    rank = _pattern(config.get("rank_pattern"), module, config["r"])
    if rank != a[0]:
        raise UserError(f"{where}: '{module}' has rank {a[0]}, {CONFIG} says {rank}: one of the two files is another's")
    alpha = _pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
    return Factors(sides["A"], sides["B"], alpha / (math.sqrt(rank) if config.get("use_rslora") else rank), transposed)


def _pattern(patterns: Mapping[str, float] | None, module: str, default: float) -> float:
    """The value of the first pattern that a module's name ends with, as PEFT matches them; else the default."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


class WithAdapters:
    """A backbone module that also loads adapters: their base, with the adapted weights written over the base's."""

    def __init__(self, backbone: ModuleType, adapters: Mapping[str, AdapterCheckpoint]):
        self._backbone = backbone
        self._adapters = {str(adapter.path): adapter for adapter in adapters.values()}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbone, name)

    def load(self, folder: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu"):
        """As the backbone's; the tokenizer is the adapter's own where it comes with one."""
        adapter = self._adapters.get(str(folder))
        if adapter is None:
            return self._backbone.load(folder, dtype=dtype, device=device)
        model, processor = self._backbone.load(adapter.base.path, dtype=dtype, device=device)
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name in adapter.adapted:
                parameters[self._backbone.parameter_name(name)].copy_(adapter.read(name))
        if not self._backbone.VISION and (adapter.path / "tokenizer_config.json").is_file():
            from transformers import AutoTokenizer

            processor = AutoTokenizer.from_pretrained(adapter.path, local_files_only=True, trust_remote_code=False)
        return model, processor
