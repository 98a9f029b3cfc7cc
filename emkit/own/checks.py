"""What a base and its experts are told apart by before a weight is read: configurations, headers, tokenizers."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from emkit.checkpoints import Checkpoint
from emkit.errors import UserError

HEAD = "lm_head.weight"
MULTIMODAL = {"qwen2_vl": "qwen2_vl", "internvl": "internvl", "internvl_chat": "internvl"}
# settings that make the same weights another function; value: how a person calls it
_SAME = {
    "num_hidden_layers": "blocks",
    "hidden_size": "width",
    "intermediate_size": "MLP width",
    "num_attention_heads": "attention heads",
    "num_key_value_heads": "key and value heads",
    "head_dim": "head width",
    "hidden_act": "activation",
}
_ROTARY = ("rope_parameters", "rope_theta", "rope_scaling", "rotary_pct", "partial_rotary_factor")


@dataclass(frozen=True)
class Config:
    """A model's configuration: ``kind`` (model_type), ``text`` (the language model's settings, defaults filled in where
    transformers knows the kind) and ``tied`` (whether the head is the embedding)."""

    kind: str
    text: Mapping[str, Any]
    tied: bool
    raw: Mapping[str, Any]


def config(folder: Path, label: str) -> Config:
    """Read ``config.json``; ``UserError`` when there is none, or when its weights are quantised."""
    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = raw["model_type"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{label}: {folder} has no usable config.json: is it a model's folder, fully downloaded?"
        ) from error
    if raw.get("quantization_config"):
        raise UserError(f"{label} ({folder}) is quantised, which cannot be merged: give the unquantised model")
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    text, tied = raw.get("text_config") or raw.get("llm_config") or raw, raw.get("tie_word_embeddings", False)
    if kind in CONFIG_MAPPING_NAMES:
        try:
            known = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # whatever a wrong value raises in transformers
            raise UserError(f"{label}: transformers cannot read {folder / 'config.json'} ({_line(error)})") from error
        text = known.get_text_config().to_dict()
        tied = any(getattr(part, "tie_word_embeddings", False) for part in (known, known.get_text_config()))
    return Config(kind, text, bool(tied), raw)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def backbone_of(found: Config, wanted: str = "auto") -> str:
    """The backbone for a base of this kind: its own, or the ``wanted`` one where that reads it as well.

    ``UserError`` for a kind that no backbone reads, or not the wanted one.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if found.kind in MULTIMODAL:
        known = (MULTIMODAL[found.kind],)
    elif found.kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        known = ("causal_lm", "mistral")
    else:
        raise UserError(
            f"the base is a '{found.kind}', which is neither one of transformers' causal language models nor Qwen2-VL "
            "or InternVL: emkit runs no model's own code"
        )
    if wanted not in ("auto", *known):
        raise UserError(f"the backbone {wanted} does not read a '{found.kind}': leave it out, or say {known[0]}")
    return known[0] if wanted == "auto" else wanted


def compare(base: Config, expert: Config, label: str, rotary: bool = False) -> None:
    """Raise ``UserError`` unless an expert's configuration is that of the base in all that merging depends on.

    ``rotary`` lets other rotary settings pass.
    """
    who = f"expert '{label}' does not fit the base"
    if base.kind != expert.kind:
        raise UserError(f"{who}: it is a {expert.kind}, the base a {base.kind}")
    ours, theirs = base.text.get("vocab_size"), expert.text.get("vocab_size")
    if ours != theirs:
        raise UserError(
            f"{who}: mismatched vocabularies, {theirs} tokens there and {ours} in the base; embeddings are not merged, "
            "so bring it to the base's size first"
        )
    for key, words in _SAME.items():
        ours, theirs = base.text.get(key), expert.text.get(key)
        if ours != theirs and None not in (ours, theirs):
            raise UserError(f"{who}: {words} ({key}) {theirs}, the base's {ours}")
    if base.tied != expert.tied:
        says = ("is tied to its embedding", "is a matrix of its own")
        raise UserError(
            f"{who}: its head {says[not expert.tied]}, the base's {says[not base.tied]} (tie_word_embeddings): "
            "untie the one or the other"
        )
    ours, theirs = ({key: c.text.get(key) for key in _ROTARY} for c in (base, expert))
    if ours != theirs and not rotary:
        key = next(key for key in _ROTARY if ours[key] != theirs[key])
        raise UserError(
            f"{who}: rotary settings ({key}) {theirs[key]}, the base's {ours[key]}, so its weights expect other "
            "positions; `--allow rotary` merges all the same"
        )


def same_heads(
    base: Checkpoint, experts: Mapping[str, Checkpoint], tied: bool
) -> tuple[Checkpoint, dict[str, Checkpoint]]:
    """The checkpoints without the head that some savers write although it is tied, where not all have it.

    ``UserError`` where such a head is not the embedding after all.
    """
    everyone = {"the base": base, **{f"expert '{label}'": expert for label, expert in experts.items()}}
    having = {label: checkpoint for label, checkpoint in everyone.items() if HEAD in checkpoint.names}
    if not tied or not having or len(having) == len(everyone):
        return base, dict(experts)
    for label, checkpoint in having.items():
        embedding = next((name for name in checkpoint.names if name.endswith("embed_tokens.weight")), None)
        if embedding is None or not torch.equal(checkpoint.read(HEAD), checkpoint.read(embedding)):
            raise UserError(
                f"{label} ({checkpoint.path}) has a {HEAD} that is not its embedding, yet says it is tied to it"
            )
    plain = {label: c.without([HEAD]) if label in having else c for label, c in everyone.items()}
    base, *others = plain.values()
    return base, dict(zip(experts, others, strict=True))


def identical(base: Checkpoint, expert: Checkpoint, names: list[str]) -> bool:
    """Whether an expert has the base's values in every merged tensor; reads until the first difference."""
    return all(torch.equal(base.read(name).to(expert.info(name).dtype), expert.read(name)) for name in names)


def learnable(folder: Path, names: list[str], parameter_name: Callable[[str], str]) -> None:
    """Raise ``UserError`` unless coefficients of a language model's tensors ``names`` can be fitted.

    transformers' class must hold each tensor under its own name (it holds the experts of a mixture as one), and take
    positions, as folded sequences give them. Only the module's outline is built, no weights.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    parameters = dict(model.named_parameters())
    other = "use a method that needs no prompts, such as ties"
    for name in names:
        if parameter_name(name) not in parameters:
            raise UserError(f"{type(model).__name__} holds '{name}' otherwise than it is stored: {other}")
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise UserError(f"{type(model).__name__} takes no positions, which a fit gives it: {other}")


def dtypes(base: Checkpoint, expert: Checkpoint, names: list[str]) -> str | None:
    """A remark for an expert that is stored in another precision than the base."""
    ours, theirs = (sorted({_name(c.info(name).dtype) for name in names}) for c in (base, expert))
    if ours == theirs:
        return None
    return f"is stored as {', '.join(theirs)}, the base as {', '.join(ours)}, which the merged model is stored as"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
