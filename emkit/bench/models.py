"""Checkpoints of a stated size to measure with: the shapes of a Llama, random bf16 weights, nothing trained."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from emkit import shards
from emkit.checkpoints import Checkpoint
from emkit.files import atomic_dir
from emkit.shards import TensorInfo

WEIGHT, STEP = 0.02, 5e-4  # standard deviations of the base's weights and of an expert's step from it


@dataclass(frozen=True)
class Shape:
    """A Llama's shape; ``parameters`` is what it comes to."""

    hidden: int
    intermediate: int
    layers: int
    vocabulary: int

    @classmethod
    def of(cls, parameters: int) -> Shape:
        """The widest shape (a power of two) of about ``parameters`` parameters that has at least twelve layers."""
        vocabulary = 32000 if parameters >= 10**8 else 512
        for hidden in (8192, 4096, 2048, 1024, 512, 256, 128, 64):
            layers = round((parameters - (2 * vocabulary + 1) * hidden) / cls._layer(hidden))
            if layers >= 12:
                break
        return cls(hidden, hidden * 11 // 4, max(layers, 1), vocabulary)

    @staticmethod
    def _layer(hidden: int) -> int:
        return 4 * hidden**2 + 3 * hidden * (hidden * 11 // 4) + 2 * hidden

    @property
    def parameters(self) -> int:
        return self.layers * self._layer(self.hidden) + (2 * self.vocabulary + 1) * self.hidden

    def tensors(self) -> dict[str, TensorInfo]:
        """Name → dtype and shape of every tensor."""
        wide, deep = self.intermediate, self.hidden
        block = {f"self_attn.{x}_proj": (deep, deep) for x in "qkvo"}
        block |= {"mlp.gate_proj": (wide, deep), "mlp.up_proj": (wide, deep), "mlp.down_proj": (deep, wide)}
        block |= {"input_layernorm": (deep,), "post_attention_layernorm": (deep,)}
        shapes = {f"model.layers.{i}.{name}": shape for i in range(self.layers) for name, shape in block.items()}
        shapes |= {"model.embed_tokens": (self.vocabulary, deep), "model.norm": (deep,)}
        shapes["lm_head"] = (self.vocabulary, deep)
        return {f"{name}.weight": TensorInfo(torch.bfloat16, shape) for name, shape in shapes.items()}

    def config(self) -> dict:
        """config.json, by which other programs know the architecture."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.hidden // 64,
            "num_key_value_heads": self.hidden // 64,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        }


def write_models(folder: Path, shape: Shape, experts: int) -> tuple[Path, list[Path]]:
    """``base`` and ``expert-1`` … in ``folder``, written tensor by tensor; models that are there already stay."""
    base = folder / "base"
    _write(base, shape, lambda name, info: _normal(name, 0, info, WEIGHT))
    reader, found = Checkpoint.open(base), []
    for k in range(1, experts + 1):
        found.append(folder / f"expert-{k}")
        _write(found[-1], shape, lambda name, info, k=k: reader.read(name).float() + _normal(name, k, info, STEP))
    return base, found


def _write(folder: Path, shape: Shape, make) -> None:
    if folder.is_dir():
        return
    infos = shape.tensors()
    with atomic_dir(folder) as part:
        shards.write(part, shards.plan(infos), lambda name: make(name, infos[name]).to(infos[name].dtype))
        (part / "config.json").write_text(json.dumps(shape.config(), indent=1) + "\n", encoding="utf-8")


def _normal(name: str, seed: int, info: TensorInfo, deviation: float) -> torch.Tensor:
    """Normal numbers that differ from tensor to tensor: a million of them, begun somewhere else and repeated."""
    numbers = math.prod(info.shape)
    pool = _pool(seed)
    start = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:4], "little") % len(pool)
    repeated = pool.roll(start).repeat(numbers // len(pool) + 1)[:numbers]
    return (repeated * deviation).reshape(info.shape)


@cache
def _pool(seed: int) -> torch.Tensor:
    return torch.randn(1_000_003, generator=torch.Generator().manual_seed(seed))
