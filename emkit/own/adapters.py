"""LoRA adapters as experts: a checkpoint that reads as the base with the adapter merged in, by PEFT's rule."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from emkit.checkpoints import Checkpoint, TensorInfo, _reader, check_finite, file_identities, sha256_tensors
from emkit.errors import UserError
from emkit.files import sha256_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_PART = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")
# what changes the rule, and is refused rather than ignored
_REFUSED = {
    "use_dora": "DoRA",
    "modules_to_save": "whole modules saved beside the adapter (modules_to_save)",
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
    """Whether a folder holds a PEFT adapter (and no whole model)."""
    return (folder / CONFIG).is_file()


@dataclass(frozen=True)
class Factors:
    """What an adapter adds to one tensor: ``scaling`` · B A, transposed where the weight is stored [in, out]."""

    a: str
    b: str
    scaling: float
    transposed: bool


class AdapterCheckpoint(Checkpoint):
    """A base with one LoRA adapter merged in, computed tensor by tensor: nothing is written, only factors are read.

    PEFT's rule (``LoraLayer.get_delta_weight``, Hu et al., 2022): W = W_base + s · B A with s = ``lora_alpha`` / r, or
    ``lora_alpha`` / √r with ``use_rslora``; ``rank_pattern`` and ``alpha_pattern`` may give single modules their own.
    The sum is in fp32 (fp64 for a fp64 base) and stays so: rounding it to a 16-bit base first, as PEFT's ``merge``
    does, would lose much of a small task vector.
    """

    def __init__(self, folder: Path, base: Checkpoint, parameter_name: Callable[[str], str], label: str):
        super().__init__(folder, dict(base._files))
        self.base, self.label = base, label
        self.config = _config(folder, label)
        self._factors = _reader(_weights(folder, label))
        self.adapted = _pairs(self._factors, self.config, base, parameter_name, label)

    def info(self, name: str) -> TensorInfo:
        info = self.base.info(name)
        return TensorInfo(_wide(info.dtype), info.shape) if name in self.adapted else info

    def read(self, name: str) -> torch.Tensor:
        stored = self.base.read(name)
        if name not in self.adapted:
            return stored
        factors, wide = self.adapted[name], _wide(stored.dtype)
        a, b = (self._factors.get_tensor(part).to(wide) for part in (factors.a, factors.b))
        delta = b @ a
        return stored.to(wide) + factors.scaling * (delta.T if factors.transposed else delta)

    def identity(self) -> list[list]:
        return [*self.base.identity(), *file_identities([self.path / CONFIG, _weights(self.path, self.label)])]

    def scan(self, where: str) -> None:
        """Raise ``UserError`` for NaN or infinity in the factors (the base is scanned by itself)."""
        for name in sorted(self._factors.keys()):
            check_finite(name, self._factors.get_tensor(name), where)

    @cached_property
    def _sha256(self) -> str:
        names = sorted(self._factors.keys())
        rule = {name: [found.scaling, found.transposed] for name, found in self.adapted.items()}
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
        f"expert '{adapter.label}' ({adapter.path}) is an adapter for another base: it was trained on {trained_on}, "
        f"the base here is {base_name}; give that base, or, if they are the same, `--allow adapter_base`"
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


def _pairs(factors, config: Mapping, base: Checkpoint, parameter_name, label: str) -> dict[str, Factors]:
    """Base tensor → its factors; ``UserError`` where an adapter does not fit the base."""
    where = f"expert '{label}'"
    tensors = {name: tensor for tensor in base.names for name in (tensor, parameter_name(tensor))}
    parts: dict[str, dict[str, str]] = {}
    for key in sorted(factors.keys()):
        match = _PART.fullmatch(key.removeprefix(_PREFIX))
        if match is None:
            raise UserError(f"{where}: the adapter's tensor '{key}' is no LoRA factor of a linear layer: not supported")
        parts.setdefault(match["module"], {})[match["side"]] = key
    if not parts:
        raise UserError(f"{where}: the adapter is empty: it has no factors")
    found = {}
    for module, sides in parts.items():
        name = tensors.get(f"{module}.weight")
        if name is None:
            raise UserError(f"{where} is an adapter for another base: it adapts '{module}', which the base has not")
        if set(sides) != {"A", "B"}:
            raise UserError(f"{where}: '{module}' has only one of its two factors: download the adapter again")
        found[name] = _factors(module, sides, factors, config, base.info(name).shape, where)
    return found


def _factors(module: str, sides: dict, factors, config: Mapping, shape: tuple[int, ...], where: str) -> Factors:
    a, b = (tuple(factors.get_slice(sides[side]).get_shape()) for side in "AB")
    transposed = bool(config.get("fan_in_fan_out"))
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
