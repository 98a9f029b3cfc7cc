"""Build an untrained miniature of a real architecture from a zoo recipe's ``model`` section."""

from __future__ import annotations

import torch
from transformers import (
    InternVLConfig,
    InternVLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)


def create(settings: dict, processor, seed: int) -> InternVLForConditionalGeneration:
    """A randomly initialised transformers ``InternVLForConditionalGeneration`` (fp32, CPU).

    ``settings`` holds ``image_size`` and ``patch_size`` in pixels and the two dicts ``vision`` and ``text`` of
    ``InternVLVisionConfig`` / ``Qwen2Config`` keys. Vocabulary and special-token ids come from ``processor``.
    The projector merges 2 × 2 patches into one image token (``downsample_ratio`` 0.5, as in InternVL2.5).
    """
    tokenizer = processor.tokenizer
    side = settings["image_size"]
    patch = settings["patch_size"]
    config = InternVLConfig(
        vision_config={"image_size": [side, side], "patch_size": [patch, patch], **settings["vision"]},
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(tokenizer),
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **settings["text"],
        },
        image_token_id=processor.image_token_id,
        image_seq_length=image_tokens(settings),
        downsample_ratio=0.5,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    model = InternVLForConditionalGeneration(config)
    _place_patches(model.model.vision_tower.embeddings.position_embeddings)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def create_qwen2_vl(settings: dict, processor, seed: int) -> Qwen2VLForConditionalGeneration:
    """A randomly initialised transformers ``Qwen2VLForConditionalGeneration`` (fp32, CPU).

    ``settings`` holds the dicts ``vision`` and ``text`` of ``Qwen2VLVisionConfig`` and ``Qwen2VLTextConfig`` keys, and
    the patches' sizes as the processor has them. Vocabulary and special-token ids come from ``processor``.
    """
    tokenizer = processor.tokenizer
    text, vision = settings["text"], settings["vision"]
    merge = settings["merge_size"]
    patches = {"patch_size": settings["patch_size"], "temporal_patch_size": settings["temporal_patch_size"]}
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    roles = ("image_token", "video_token", "vision_start_token", "vision_end_token")
    config = Qwen2VLConfig(
        text_config={"vocab_size": len(tokenizer), "tie_word_embeddings": True, **ends, **text},
        vision_config={"hidden_size": text["hidden_size"], "spatial_merge_size": merge, **patches, **vision},
        tie_word_embeddings=True,
        **{f"{role}_id": tokenizer.convert_tokens_to_ids(getattr(tokenizer, role)) for role in roles},
    )
    torch.manual_seed(seed)
    model = Qwen2VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def image_tokens(settings: dict) -> int:
    """Image tokens an image takes in the sequence: patches after the 2 × 2 pixel shuffle."""
    return (settings["image_size"] // settings["patch_size"] // 2) ** 2


@torch.no_grad()
def _place_patches(embeddings: torch.Tensor, scale: float = 0.5) -> None:
    """Start the vision tower's position embeddings [1, 1 + patches, d] as two-dimensional sinusoids.

    transformers starts them at zero, from where a small tower takes long to learn where things are.
    """
    side, quarter = int((embeddings.shape[1] - 1) ** 0.5), embeddings.shape[2] // 4
    frequencies = 100.0 ** -(torch.arange(quarter) / quarter)
    phases = torch.arange(side)[:, None] * frequencies
    waves = torch.cat([phases.sin(), phases.cos()], dim=1)
    rows, columns = waves[:, None].expand(-1, side, -1), waves[None].expand(side, -1, -1)
    embeddings[0, 1:] = scale * torch.cat([rows, columns], dim=2).reshape(side * side, 4 * quarter)
