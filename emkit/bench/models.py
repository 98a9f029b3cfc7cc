"""Checkpoints of a stated size to measure with: the shapes of a Llama, random bf16 weights, nothing trained."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from emkit import shards
from emkit.files import atomic_dir
from emkit.shards import TensorInfo


@dataclass(frozen=True)
class Shape:
    """A Llama-like model's shape, the standard deviations of its weights and of an expert's step from them;
    ``parameters``: what it comes to where every head has keys and values of its own."""

    hidden: int
    intermediate: int
    layers: int
    vocabulary: int
    heads: int | None = None
    kv_heads: int | None = None
    weight: float = 0.02
    step: float = 5e-4

    @classmethod
    def of(cls, parameters: int) -> Shape:
        """The widest shape (a power of two) of about ``parameters`` parameters that has at least twelve layers."""
        vocabulary = 32000 if parameters >= 10**8 else 512
        for hidden in (8192, 4096, 2048, 1024, 512, 256, 128, 64):
            one, none = (cls(hidden, hidden * 11 // 4, layers, vocabulary).parameters for layers in (1, 0))
            layers = round((parameters - none) / (one - none))
            if layers >= 12:
                break
        return cls(hidden, hidden * 11 // 4, max(layers, 1), vocabulary)

    @property
    def parameters(self) -> int:
        layer = 4 * self.hidden**2 + 3 * self.hidden * self.intermediate + 2 * self.hidden
        return self.layers * layer + (2 * self.vocabulary + 1) * self.hidden

    @property
    def middle(self) -> int:
        """The block whose states a hidden loss compares."""
        return max(self.layers // 2, 1)

    def text(self) -> dict:
        """The configuration of a language model of this shape."""
        heads = self.heads or max(self.hidden // 64, 1)
        return {
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": heads,
            "num_key_value_heads": self.kv_heads or heads,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 4096,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "initializer_range": self.weight,
        }

    def config(self) -> LlamaConfig:
        """By which other programs, too, know the architecture."""
        return LlamaConfig(
            architectures=["LlamaForCausalLM"], tie_word_embeddings=False, dtype="bfloat16", **self.text()
        )

    def tensors(self) -> dict[str, TensorInfo]:
        """Name → dtype and shape of every tensor."""
        with torch.device("meta"):
            parameters = LlamaForCausalLM(self.config()).named_parameters()
        return {name: TensorInfo(torch.bfloat16, tuple(p.shape)) for name, p in parameters}


def write_models(folder: Path, shape: Shape, experts: int) -> tuple[Path, list[Path]]:
    """``base`` and ``expert-1`` … in ``folder``, written tensor by tensor; models that are there already stay."""
    infos, members = shape.tensors(), ["base", *(f"expert-{k}" for k in range(1, experts + 1))]
    for k, member in enumerate(members):
        if not (folder / member).is_dir():
            with atomic_dir(folder / member) as part:
                shards.write(part, shards.plan(infos), partial(_tensor, shape, infos, k))
                (part / "config.json").write_text(json.dumps(shape.config().to_dict(), indent=1) + "\n")
    return folder / members[0], [folder / member for member in members[1:]]


def _tensor(model: Shape, infos: dict[str, TensorInfo], k: int, name: str) -> torch.Tensor:
    """A tensor of the base (k = 0), or of expert k: the base's, as stored, and a step."""
    dtype, shape = infos[name].dtype, infos[name].shape

    def normal(member: int) -> torch.Tensor:
        seed = zlib.crc32(f"{member} {name}".encode())
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    base = (normal(0) * model.weight).to(dtype)
    return base if k == 0 else (base.float() + normal(k) * model.step).to(dtype)
