"""LoRA adapters as experts: a checkpoint that reads as the base with the adapter merged in, by PEFT's rule."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import torch

from emkit import foreign
from emkit.backbones.base import Backbone
from emkit.checkpoints import Checkpoint, Look, TensorInfo, _reader, check_finite, file_identities
from emkit.errors import UserError
from emkit.files import sha256_json
from emkit.hashes import sha256_tensors
from emkit.layouts import Layout, Wrapped
from emkit.own.adapter_files import CONFIG, WEIGHTS, Saved, parts, read_config, weights_file
from emkit.shards import INDEX, SINGLE


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


class AdapterCheckpoint(Checkpoint):
    """A base with one LoRA adapter merged in, computed tensor by tensor: nothing is written, only factors are read.

    PEFT's rule (``LoraLayer.get_delta_weight``, Hu et al., 2022): W = W_base + s · B A with s = ``lora_alpha`` / r, or
    ``lora_alpha`` / √r with ``use_rslora``; ``rank_pattern`` and ``alpha_pattern`` may give single modules their own.
    The sum is in fp32 (fp64 for a fp64 base) and stays so: rounding it to a 16-bit base first, as PEFT's ``merge``
    does, would lose much of a small task vector.

    ``layout``: which parameter a tensor becomes. ``adapted``: base tensor → what the adapter has for it. ``beyond``:
    what it has that the base has no place for, in words.
    """

    def __init__(self, folder: Path, base: Checkpoint, layout: Layout, label: str):
        super().__init__(folder, dict(base._files))
        self.base, self.label = base, label
        self.config = read_config(folder, label)
        self._factors = _reader(weights_file(folder, label))
        self.adapted, self.beyond = parts(self._factors, self.config, base, layout, label)

    @property
    def configured(self) -> Path:
        return self.base.path

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
        return [*self.base.identity(), *file_identities([self.path / CONFIG, weights_file(self.path, self.label)])]

    def scan(self, where: str, look: Look | None = None) -> None:
        """Raise ``UserError`` for NaN or infinity in the factors (the base is scanned by itself).

        ``look`` is shown the tensors that the adapter changes.
        """
        for name in sorted(self._factors.keys()):
            check_finite(name, self._factors.get_tensor(name), where)
        if look is not None:
            for name in sorted(self.adapted):
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


def with_adapters(backbone: Backbone, experts: Mapping[str, Checkpoint]) -> Backbone:
    """``backbone`` as it loads ``experts``, adapters among them."""
    adapters = {label: expert for label, expert in experts.items() if isinstance(expert, AdapterCheckpoint)}
    return WithAdapters(backbone, adapters) if adapters else backbone


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
    found = foreign.mapping(folder / "config.json").get("_name_or_path")
    return found if isinstance(found, str) else None


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


class WithAdapters(Wrapped):
    """A backbone that also loads adapters: their base, with the adapted weights written over the base's."""

    def __init__(self, backbone: Backbone, adapters: Mapping[str, AdapterCheckpoint]):
        super().__init__(backbone)
        self._adapters = {str(adapter.path): adapter for adapter in adapters.values()}

    def load(self, folder: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu"):
        """As the backbone's; the tokenizer is the adapter's own where it comes with one."""
        adapter = self._adapters.get(str(folder))
        if adapter is None:
            return self.backbone.load(folder, dtype=dtype, device=device)
        model, processor = self.backbone.load(adapter.base.path, dtype=dtype, device=device)
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name in adapter.adapted:
                parameters[self.backbone.parameter_name(name)].copy_(adapter.read(name))
        if not self.backbone.VISION and (adapter.path / "tokenizer_config.json").is_file():
            from transformers import AutoTokenizer

            processor = AutoTokenizer.from_pretrained(adapter.path, local_files_only=True, trust_remote_code=False)
        return model, processor
