"""InternVL2.5 and its miniature: a vision tower, a projector and a Qwen2 language model.

Three layouts of the same tensors exist, and the paper's exclusion patterns are written for the first:

=============== ========================= ========================= =======================================
layout          vision tower              projector                 language model
=============== ========================= ========================= =======================================
original        ``vision_model.``         ``mlp1.{0,1,3}.``         ``language_model.model.layers.``
hub (on disk)   ``vision_tower.``         ``multi_modal_projector.`` ``language_model.model.layers.``
module (memory) ``model.vision_tower.``   ``model.multi_modal_projector.`` ``model.language_model.layers.``
=============== ========================= ========================= =======================================

*hub* is what ``save_pretrained`` writes, *module* what ``named_parameters`` shows. In every layout the merged
tensors are the 7 matrices of each language-model block and the projector's three weights, its LayerNorm included
(``mlp1.0`` slips past the authors' pattern "norm"): 7 × blocks + 3.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from PIL.Image import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from emkit.backbones.output import Output
from emkit.progress import passes

VISION = ("pixel_values",)

_BLOCK = r"layers\.(?P<block>\d+)\.(?:self_attn\.(?:q|k|v|o)_proj|mlp\.(?:gate|up|down)_proj)\.weight"
_MERGED = {
    "original": re.compile(rf"(?:language_model\.model\.{_BLOCK}|mlp1\.[013]\.weight)"),
    "hub": re.compile(
        rf"(?:language_model\.model\.{_BLOCK}|multi_modal_projector\.(?:layer_norm|linear_1|linear_2)\.weight)"
    ),
    "module": re.compile(
        rf"(?:model\.language_model\.{_BLOCK}|model\.multi_modal_projector\.(?:layer_norm|linear_1|linear_2)\.weight)"
    ),
}


def layout(names: Iterable[str]) -> str:
    """Which of the three layouts ``names`` follow; raises ``ValueError`` when none fits."""
    names = list(names)
    for prefix, found in (
        ("model.language_model.", "module"),
        ("mlp1.", "original"),
        ("multi_modal_projector.", "hub"),
    ):
        if any(name.startswith(prefix) for name in names):
            return found
    raise ValueError(
        "these tensors are no InternVL checkpoint: neither mlp1.* nor multi_modal_projector.* is among them"
    )


def merged_names(names: Iterable[str]) -> list[str]:
    """The tensors that merging touches, projector first, then block by block: 7 × blocks + 3 names."""
    names = list(names)
    pattern = _MERGED[layout(names)]
    chosen = [(match, name) for name in names if (match := pattern.fullmatch(name))]
    return [name for match, name in sorted(chosen, key=lambda pair: (int(pair[0]["block"] or -1), pair[1]))]


def parameter_name(name: str) -> str:
    """The ``named_parameters`` name of a tensor that is called ``name`` on disk (hub layout)."""
    if name.startswith("language_model.model."):
        return "model.language_model." + name.removeprefix("language_model.model.")
    if name.startswith(("vision_tower.", "multi_modal_projector.")):
        return "model." + name
    return name


def load(folder: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu"):
    """Open a checkpoint folder as ``(model, processor)``, in eval mode; a checkpoint's own code is never run."""
    model = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=dtype, local_files_only=True, trust_remote_code=False, use_safetensors=True
    )
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return model.to(device).eval(), processor


def blocks(model) -> int:
    """Transformer blocks of the language model."""
    return model.config.text_config.num_hidden_layers


def prompt(processor, question: str, image: bool = True) -> str:
    """The chat template's text of one question, and one image before it, up to where the assistant begins."""
    content = [{"type": "image"}] * image + [{"type": "text", "text": question}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )


def encode(
    processor, images: Sequence[Image | None], questions: Sequence[str], responses: Sequence[str] | None = None
) -> dict:
    """Tokenise single-turn chats; B chats give tensors of B rows. An image may be None: a question about none.

    With ``responses`` the rows are right-padded and end with the response and ``<|im_end|>``; ``response_mask``
    (bool [B, S]) is True where the token *at* that position belongs to the response, the end token included. Without,
    rows are left-padded and end where the assistant begins. Also ``input_ids``, ``attention_mask`` (int64 [B, S]) and
    ``pixel_values`` (fp32 [B, 3, H, W]).
    """
    seen = [image for image in images if image is not None]
    prompts = [prompt(processor, q, image is not None) for q, image in zip(questions, images, strict=True)]
    side = "left" if responses is None else "right"
    ends = [""] * len(prompts) if responses is None else [text + processor.tokenizer.eos_token for text in responses]
    texts = [start + end for start, end in zip(prompts, ends, strict=True)]
    batch = dict(processor(images=seen or None, text=texts, return_tensors="pt", padding=True, padding_side=side))
    if responses is not None:
        tokens = processor.tokenizer(ends, add_special_tokens=False)["input_ids"]
        response_mask = torch.zeros_like(batch["attention_mask"], dtype=torch.bool)
        for row, (length, response) in enumerate(zip(batch["attention_mask"].sum(1).tolist(), tokens, strict=True)):
            response_mask[row, length - len(response) : length] = True
        batch["response_mask"] = response_mask
    return batch


@torch.no_grad()
def image_features(model, pixel_values: torch.Tensor | None = None) -> torch.Tensor:
    """The vision tower's output after pixel shuffle, before the projector: [B, image tokens, 4 × vision width].

    Nothing of it is merged, so one result serves every merge of a zoo and every step of a fit. Empty without images.
    """
    if pixel_values is None:
        return torch.zeros(0)
    return trainable_image_features(model, pixel_values)


def vision_state(model) -> dict[str, torch.Tensor]:
    """The tensors that :func:`image_features` depends on, by name."""
    return model.model.vision_tower.state_dict()


def trainable_image_features(model, pixel_values: torch.Tensor) -> torch.Tensor:
    """:func:`image_features` with gradients, for training a base."""
    features = model.model.vision_tower(pixel_values=pixel_values.to(model.dtype)).last_hidden_state[:, 1:]
    side = int(features.shape[1] ** 0.5)
    features = features.reshape(features.shape[0], side, side, -1)
    features = model.model.pixel_shuffle(features, scale_factor=model.config.downsample_ratio)
    return features.reshape(features.shape[0], -1, features.shape[-1])


def _embedded(model, batch: dict, features: torch.Tensor | None) -> dict:
    """Keyword arguments for the language model: token embeddings with the projected image in place."""
    if features is None:
        features = image_features(model, batch.get("pixel_values"))
    embeddings = model.get_input_embeddings()(batch["input_ids"])
    rest = {"attention_mask": batch["attention_mask"], "position_ids": batch.get("position_ids")}
    if not len(features):
        return {"inputs_embeds": embeddings, **rest}
    projected = model.model.multi_modal_projector(features)
    place = (batch["input_ids"] == model.config.image_token_id).unsqueeze(-1)
    if int(place.sum()) != projected.shape[0] * projected.shape[1]:
        raise ValueError(
            f"{int(place.sum())} image tokens in the text, {projected.shape[0] * projected.shape[1]} features"
        )
    return {"inputs_embeds": embeddings.masked_scatter(place, projected.to(embeddings.dtype)), **rest}


def forward(
    model,
    batch: dict,
    features: torch.Tensor | None = None,
    hidden_layer: int | None = None,
    positions: torch.Tensor | None = None,
) -> Output:
    """One pass through the language model.

    ``hidden_layer`` j asks for the output of block j (1-based: ``hidden_states[j]``, index 0 being the embeddings)
    as ``hidden`` [B, S, d]. ``positions`` (bool [B, S]) keeps logits at those positions only, [N, V] in row-major
    order; without it logits are [B, S, V].
    """
    outputs = model.model.language_model(
        **_embedded(model, batch, features), use_cache=False, output_hidden_states=hidden_layer is not None
    )
    last = outputs.last_hidden_state
    logits = model.lm_head(last if positions is None else last[positions])
    return Output(logits, outputs.hidden_states[hidden_layer] if hidden_layer is not None else None)


@torch.no_grad()
def generate(
    model,
    processor,
    images: Sequence[Image | None],
    questions: Sequence[str],
    max_new_tokens: int,
    batch_size: int = 64,
    features: Callable[[int, int], torch.Tensor] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """Greedy answers to single-turn questions, in the order asked; special tokens are dropped.

    ``features(start, stop)`` may supply cached :func:`image_features` of those items. ``progress`` is told how many
    items were just answered. Items are answered in order of question length, so that batches need little padding.
    """
    order = sorted(range(len(questions)), key=lambda i: (len(questions[i]), i))
    answers = [""] * len(questions)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = encode(processor, [images[i] for i in rows], [questions[i] for i in rows])
        given = {}
        if features is not None and "pixel_values" in batch:
            seen = [features(i, i + 1) for i in rows if images[i] is not None]
            given = {"image": _pooled(model, torch.cat(seen))}
            batch.pop("pixel_values")
        with passes(model, "answers", start, len(order)):
            tokens = model.generate(
                **{key: value.to(model.device) for key, value in batch.items()},
                mm_encoder_outputs=given,
                max_new_tokens=max_new_tokens,
                do_sample=False,
            )
        texts = processor.tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, text in zip(rows, texts, strict=True):
            answers[i] = text.strip()
        if progress is not None:
            progress(len(rows))
    return answers


def _pooled(model, features: torch.Tensor) -> BaseModelOutputWithPooling:
    """Cached features in the shape in which transformers hands on an encoder's output."""
    return BaseModelOutputWithPooling(pooler_output=model.model.multi_modal_projector(features.to(model.dtype)))
