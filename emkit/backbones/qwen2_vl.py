"""Qwen2-VL: a vision tower that takes images of any size, and a Qwen2 language model with three-part positions.

Three layouts of the same tensors exist:

=============== ============================ ================================= ==============================
layout          vision tower                 language model                    head
=============== ============================ ================================= ==============================
hub (on disk)   ``visual.``                  ``model.layers.``                 ``lm_head.``
older hub       ``model.visual.``            ``model.language_model.layers.``  ``lm_head.``
module (memory) ``model.visual.``            ``model.language_model.layers.``  ``lm_head.``
=============== ============================ ================================= ==============================

*hub* is what ``save_pretrained`` writes and the published checkpoints have; transformers 4.52 and a few later versions
wrote the module's names. In every layout the merged tensors are the 7 matrices of each language-model block: 7 ×
blocks. The vision tower, its merger included, stays at the base's values.

An image of h × w patches takes h·w/4 tokens. Their positions have three parts, time, row and column, and the text
after an image goes on from the largest of them (m-RoPE).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from PIL.Image import Image
from transformers import AutoProcessor, Qwen2VLForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling

from emkit.backbones.output import Output
from emkit.progress import passes

VISION = ("pixel_values", "image_grid_thw")

_MERGED = re.compile(
    r"model\.(?:language_model\.)?layers\.(?P<block>\d+)\."
    r"(?:self_attn\.(?:q|k|v|o)_proj|mlp\.(?:gate|up|down)_proj)\.weight"
)


def merged_names(names: Iterable[str]) -> list[str]:
    """The tensors that merging touches, block by block: 7 × blocks names."""
    found = [(int(match["block"]), name) for name in names if (match := _MERGED.fullmatch(name))]
    return [name for _, name in sorted(found)]


def parameter_name(name: str) -> str:
    """The ``named_parameters`` name of a tensor that is called ``name`` on disk (either hub layout)."""
    if name.startswith("visual."):
        return "model." + name
    if name.startswith("model.") and not name.startswith(("model.visual.", "model.language_model.")):
        return "model.language_model." + name.removeprefix("model.")
    return name


def load(folder: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu"):
    """Open a checkpoint folder as ``(model, processor)``, in eval mode; a checkpoint's own code is never run."""
    model = Qwen2VLForConditionalGeneration.from_pretrained(
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
    rows are left-padded and end where the assistant begins. Also ``input_ids``, ``attention_mask`` and
    ``mm_token_type_ids`` (1: of an image) int64 [B, S], ``position_ids`` int64 [3, B, S], and, row of row, for the
    images: ``pixel_values`` fp32 [patches of all images, patch size] and ``image_grid_thw`` int64 [images, 3].
    """
    seen = [image for image in images if image is not None]
    prompts = [prompt(processor, q, image is not None) for q, image in zip(questions, images, strict=True)]
    side = "left" if responses is None else "right"
    ends = [""] * len(prompts) if responses is None else [text + processor.tokenizer.eos_token for text in responses]
    texts = [start + end for start, end in zip(prompts, ends, strict=True)]
    batch = dict(processor(images=seen or None, text=texts, return_tensors="pt", padding=True, padding_side=side))
    batch["position_ids"] = positions_3d(
        batch["mm_token_type_ids"],
        batch["attention_mask"],
        batch.get("image_grid_thw", torch.zeros(0, 3, dtype=torch.int64)),
        processor.image_processor.merge_size,
    )
    if responses is not None:
        tokens = processor.tokenizer(ends, add_special_tokens=False)["input_ids"]
        response_mask = torch.zeros_like(batch["attention_mask"], dtype=torch.bool)
        for row, (length, response) in enumerate(zip(batch["attention_mask"].sum(1).tolist(), tokens, strict=True)):
            response_mask[row, length - len(response) : length] = True
        batch["response_mask"] = response_mask
    return batch


def positions_3d(types: torch.Tensor, mask: torch.Tensor, grids: torch.Tensor, merge: int) -> torch.Tensor:
    """m-RoPE positions [3, B, S]: text counts on in all three parts, an image's tokens have its own time, row, column.

    ``types`` and ``mask`` int64 [B, S] (1: image; 0: padding), ``grids`` int64 [images, 3]: time, rows and columns of
    patches, ``merge`` × ``merge`` of which are one token. After an image the text goes on from its start plus the
    larger of its sides in tokens. Padded places have position 0.
    """
    out = torch.zeros(3, *types.shape, dtype=torch.int64)
    remaining = iter(grids.tolist())
    for row in range(len(types)):
        kinds = types[row][mask[row].bool()].tolist()
        parts, at, next_position = [], 0, 0
        while at < len(kinds):
            if kinds[at] == 1:
                t, h, w = next(remaining)
                h, w = h // merge, w // merge
                axes = torch.meshgrid(torch.arange(t), torch.arange(h), torch.arange(w), indexing="ij")
                parts.append(torch.stack(axes).reshape(3, -1) + next_position)
                at, next_position = at + t * h * w, next_position + max(h, w)
            else:
                parts.append(torch.full((3, 1), next_position))
                at, next_position = at + 1, next_position + 1
        out[:, row, mask[row].bool()] = torch.cat(parts, dim=1)
    return out


@torch.no_grad()
def image_features(model, pixel_values: torch.Tensor | None = None, grids: torch.Tensor | None = None) -> torch.Tensor:
    """What the vision tower and its merger make of images: [image tokens of all images, text width], image by image.

    Nothing of it is merged, so one result serves every merge of a zoo and every step of a fit. Empty without images.
    """
    if pixel_values is None:
        return torch.zeros(0)
    return trainable_image_features(model, pixel_values, grids)


def trainable_image_features(model, pixel_values: torch.Tensor, grids: torch.Tensor) -> torch.Tensor:
    """:func:`image_features` with gradients, for training a base."""
    return model.model.visual(pixel_values.to(model.dtype), grid_thw=grids.to(model.device)).pooler_output


def vision_state(model) -> dict[str, torch.Tensor]:
    """The tensors that :func:`image_features` depends on, by name."""
    return model.model.visual.state_dict()


def forward(
    model,
    batch: dict,
    features: torch.Tensor | None = None,
    hidden_layer: int | None = None,
    positions: torch.Tensor | None = None,
) -> Output:
    """One pass through the language model; ``batch`` holds ``position_ids`` [3, B, S].

    ``hidden_layer`` j asks for the output of block j (1-based: ``hidden_states[j]``, index 0 being the embeddings)
    as ``hidden`` [B, S, d]. ``positions`` (bool [B, S]) keeps logits at those positions only, [N, V] in row-major
    order; without it logits are [B, S, V].
    """
    if features is None:
        features = image_features(model, *(batch.get(name) for name in VISION))
    embeddings = model.get_input_embeddings()(batch["input_ids"])
    place = (batch["input_ids"] == model.config.image_token_id).unsqueeze(-1)
    if int(place.sum()) != len(features):
        raise ValueError(f"{int(place.sum())} image tokens in the text, {len(features)} features")
    if len(features):
        embeddings = embeddings.masked_scatter(place, features.to(embeddings.dtype))
    outputs = model.model.language_model(
        inputs_embeds=embeddings,
        attention_mask=batch["attention_mask"],
        position_ids=batch["position_ids"],
        use_cache=False,
        output_hidden_states=hidden_layer is not None,
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
        del batch["position_ids"]  # transformers counts on from its own
        if features is not None and "pixel_values" in batch:
            seen = tuple(features(i, i + 1).to(model.device, model.dtype) for i in rows if images[i] is not None)
            batch |= {"mm_encoder_outputs": {"image": BaseModelOutputWithPooling(pooler_output=seen)}}
            del batch["pixel_values"]
        with passes(model, "answers", start, len(order)):
            tokens = model.generate(
                **{key: value.to(model.device) if torch.is_tensor(value) else value for key, value in batch.items()},
                max_new_tokens=max_new_tokens,
                do_sample=False,
            )
        texts = processor.tokenizer.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, text in zip(rows, texts, strict=True):
            answers[i] = text.strip()
        if progress is not None:
            progress(len(rows))
    return answers
