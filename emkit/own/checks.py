"""What a base and its experts are told apart by before a weight is read: configurations, headers, tokenizers."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from emkit import backbones, foreign
from emkit.checkpoints import Checkpoint
from emkit.errors import UserError, reason
from emkit.layouts import Layout
from emkit.pretrained import configuration

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
# settings of training, saving and answering: a forward pass of the merged model does not depend on them
_INERT = re.compile(
    r"_name_or_path|architectures|auto_map|transformers_version|(?:torch_)?dtype|use_cache|(?:bos|eos|pad|sep)_token_id"
    r"|vocab_size|tie_word_embeddings|rope_(?:parameters|theta|scaling)|rotary_pct|partial_rotary_factor|initializer\w*|\w*dropout\w*|\w+_pdrop"
    r"|gradient_checkpointing|output_(?:attentions|hidden_states|router_logits)|return_dict|id2label|label2id|num_labels|problem_type|task_specific_params"
    r"|_?attn_implementation\w*|summary_\w+|router_aux_loss_coef|pretraining_tp|is_encoder_decoder|chunk_size_feed_forward"
    r"|unsloth\w*"
)
_ROTARY = ("rope_parameters", "rope_theta", "rope_scaling", "rotary_pct", "partial_rotary_factor")


@dataclass(frozen=True)
class Config:
    """A model's configuration: ``kind`` (model_type), ``text`` (the language model's settings, defaults filled in where
    transformers knows the kind), ``tied`` (whether the head is the embedding) and ``settings``: all of them, by dotted
    names."""

    kind: str
    text: Mapping[str, Any]
    tied: bool
    settings: Mapping[str, Any]


def config(folder: Path, label: str) -> Config:
    """Read ``config.json``; ``UserError`` when there is none, or when its weights are quantised."""
    there = (folder / "config.json").is_file()
    raw = foreign.mapping(folder / "config.json") if there else {}
    kind = raw.get("model_type")
    if not isinstance(kind, str):
        raise UserError(f"{label}: {folder} has no usable config.json: is it a model's folder, fully downloaded?")
    if raw.get("quantization_config"):
        raise UserError(f"{label} ({folder}) is quantised, which cannot be merged: give the unquantised model")
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    text, tied = raw.get("text_config") or raw.get("llm_config") or raw, raw.get("tie_word_embeddings", False)
    every = raw
    if kind in CONFIG_MAPPING_NAMES:
        try:
            known = configuration(folder)
        except Exception as error:  # whatever a wrong value raises in transformers
            raise UserError(f"{label}: transformers cannot read {folder / 'config.json'} ({reason(error)})") from error
        text, every = known.get_text_config().to_dict(), known.to_dict()
        tied = any(getattr(part, "tie_word_embeddings", False) for part in (known, known.get_text_config()))
    if not isinstance(text, Mapping):
        raise UserError(f"{label}: {folder / 'config.json'} has a text_config that is no mapping: download it again")
    return Config(kind, text, bool(tied), dict(_flat(every)))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and key not in _ROTARY:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def backbone_of(found: Config, wanted: str = "auto") -> str:
    """The backbone for a base of this kind: its own, or the ``wanted`` one where that reads it as well.

    ``UserError`` for a kind that no backbone reads, or not the wanted one.
    """
    known = backbones.reading(found.kind)
    if not known:
        images = ", ".join(kind for name in backbones.NAMES for kind in backbones.get(name).kinds)
        raise UserError(
            f"the base is a '{found.kind}', which is neither one of transformers' causal language models nor one of "
            f"{images}: emkit runs no model's own code"
        )
    if wanted not in ("auto", *known):
        raise UserError(f"the backbone {wanted} does not read a '{found.kind}': leave it out, or say {known[0]}")
    return known[0] if wanted == "auto" else wanted


def compare(base: Config, expert: Config, label: str, rotary: bool = False, every: bool = False) -> list[str]:
    """Remarks on the settings of an expert that change what a model computes and are not the base's.

    ``UserError`` where the blocks themselves are others, so that nothing can be merged, and for other rotary settings
    unless ``rotary`` lets them pass. ``every``: embeddings and head are merged too, and so have to fit.
    """
    who = f"expert '{label}' does not fit the base"
    if base.kind != expert.kind:
        raise UserError(f"{who}: it is a {expert.kind}, the base a {base.kind}")
    for key, words in _SAME.items():
        ours, theirs = base.text.get(key), expert.text.get(key)
        if ours != theirs and None not in (ours, theirs):
            raise UserError(f"{who}: {words} ({key}) {theirs}, the base's {ours}")
    ours, theirs = base.text.get("vocab_size"), expert.text.get("vocab_size")
    if ours != theirs and every:
        raise UserError(
            f"{who}: mismatched vocabularies, {theirs} tokens there and {ours} in the base, and embeddings are merged "
            "with `--tensors all`: `--tensors backbone` merges the blocks alone, or bring it to the base's size first"
        )
    if base.tied != expert.tied and every:
        says = ("is tied to its embedding", "is a matrix of its own")
        raise UserError(
            f"{who}: its head {says[not expert.tied]}, the base's {says[not base.tied]} (tie_word_embeddings): "
            "`--tensors backbone` merges the blocks alone, or untie the one or the other"
        )
    ours, theirs = ({key: _one_name(c.text.get(key)) for key in _ROTARY} for c in (base, expert))
    if ours != theirs and not rotary:
        key = next(key for key in _ROTARY if ours[key] != theirs[key])
        raise UserError(
            f"{who}: rotary settings ({key}) {theirs[key]}, the base's {ours[key]}, so its weights expect other "
            "positions; `--allow rotary` merges all the same"
        )
    return _others(base, expert, label)


def _one_name(value: Any) -> Any:
    """Rotary settings with their kind under its name of today; older files say ``type``, some both."""
    if not isinstance(value, Mapping) or "type" not in value:
        return value
    return {"rope_type": value["type"]} | {key: entry for key, entry in value.items() if key != "type"}


def _others(base: Config, expert: Config, label: str) -> list[str]:
    """A remark for each setting that differs, but for those that say nothing of what a model computes."""
    differ = []
    for key in sorted({*base.settings, *expert.settings}):
        ours, theirs = base.settings.get(key), expert.settings.get(key)
        if ours != theirs and not any(map(_INERT.fullmatch, key.split("."))):
            differ.append(f"{key} is {theirs} there, {ours} in the base")
    if not differ:
        return []
    return [f"expert '{label}' has other settings, and the merged model the base's: {'; '.join(differ)}"]


def without_copies(checkpoint: Checkpoint, layout: Layout, who: str) -> Checkpoint:
    """A checkpoint without the copies that some savers write of tensors that are tied to another (the head's).

    ``layout`` is its own. A parameter that is merged twice may end as two. ``UserError`` where a copy is none: either
    the one tensor or the other is not what was trained.
    """
    stored = {layout.parameter(name): name for name in checkpoint.names}
    copies = {stored[copy]: stored.get(source) for copy, source in layout.tied.items() if copy in stored}
    for copy, source in copies.items():
        if source is None or not torch.equal(checkpoint.read(copy), checkpoint.read(source)):
            raise UserError(
                f"{who} ({checkpoint.path}) has a {copy} that is not its embedding, yet says it is tied to it"
            )
    return checkpoint.without(copies)


def identical(base: Checkpoint, expert: Checkpoint, names: list[str]) -> bool:
    """Whether an expert has the base's values in every merged tensor; reads until the first difference."""
    return all(torch.equal(base.read(name).to(expert.info(name).dtype), expert.read(name)) for name in names)


def learnable(layout: Layout, names: list[str]) -> None:
    """Raise ``UserError`` unless coefficients of a language model's tensors ``names`` can be fitted.

    transformers' class must hold each as a parameter of its own (it holds the experts of a mixture as one), and take
    positions, as folded sequences give them.
    """
    kind, other = type(layout.outline).__name__, "use a method that needs no prompts, such as ties"
    for name in names:
        if layout.parameter(name) not in layout.parameters:
            raise UserError(f"{kind} holds '{name}' otherwise than it is stored: {other}")
    if layout.outline is not None and "position_ids" not in inspect.signature(layout.outline.forward).parameters:
        raise UserError(f"{kind} takes no positions, which a fit gives it: {other}")


def comparable(label: str, tokens: tuple[int | None, int | None], way: str) -> None:
    """Raise ``UserError`` unless an expert has as many tokens as the base (``tokens``), over which a fit compares their
    logits; ``way``: what else there is to do."""
    if tokens[0] != tokens[1]:
        raise UserError(
            f"expert '{label}' has {tokens[0]} tokens, the base {tokens[1]}: learned methods compare logits token by "
            f"token; bring it to the base's size first, or {way}"
        )


def can_teach(expert: Checkpoint, layout: Layout, label: str, tokens: tuple[int | None, int | None]) -> None:
    """Raise ``UserError`` unless an expert can be run as what it is and compared with the base.

    ``tokens``: rows of its vocabulary and of the base's, over which logits are compared.
    """
    way = "use a method that needs no prompts, such as ties"
    comparable(label, tokens, way)
    lacking = layout.lacking(expert)
    if lacking:
        raise UserError(
            f"expert '{label}' ({expert.path}) has no '{lacking[0]}' (a classifier, or saved without its head?), so "
            f"that it cannot answer prompts: {way}"
        )
    beyond = getattr(expert, "beyond", ())
    if beyond:
        raise UserError(
            f"expert '{label}' has {beyond[0]}: without it, it is not the expert that was trained; merge the adapter "
            f"into its base with PEFT first, or {way}"
        )


def dtypes(base: Checkpoint, expert: Checkpoint, names: list[str]) -> str | None:
    """A remark for an expert that is stored in another precision than the base."""
    ours, theirs = (sorted({_name(c.info(name).dtype) for name in names}) for c in (base, expert))
    if ours == theirs:
        return None
    return f"is stored as {', '.join(theirs)}, the base as {', '.join(ours)}, which the merged model is stored as"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
