"""Tiny random language models and Qwen2-VL models as checkpoint folders, with a tokenizer of bytes made on the spot."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
)

SPECIAL = ("<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>")
VISUAL = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
CHAT = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for part in m['content'] %}{% if part['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}{{ '</s>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SIZE = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
}
CONFIGS = {
    "llama": LlamaConfig,
    "mistral": MistralConfig,
    "qwen2": Qwen2Config,
    "gpt_neox": GPTNeoXConfig,
    "mixtral": MixtralConfig,
}


def tokenizer(chat: str | None = CHAT, visual: bool = False) -> PreTrainedTokenizerFast:
    """One token a byte, and the special ones."""
    special = [*SPECIAL, *(VISUAL if visual else ())]
    pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=special[3:],
        chat_template=chat,
        clean_up_tokenization_spaces=False,
    )


def language_model(kind: str = "llama", blocks: int = 2, seed: int = 0, **changes):
    """A random ``…ForCausalLM`` of ``kind`` (fp32); weights of a size that makes its states differ."""
    words = tokenizer()
    if kind != "gpt_neox":
        changes = {"num_key_value_heads": 1, **changes}
    config = CONFIGS[kind](
        **{**SIZE, "vocab_size": len(words), "num_hidden_layers": blocks, **changes},
        pad_token_id=words.pad_token_id,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )
    torch.manual_seed(seed)
    return spread(AutoModelForCausalLM.from_config(config), seed)


def spread(model, seed: int, size: float = 0.2):
    """The model with noise on every parameter, so that no two tensors, and no two models, are alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=size)
    return model.eval()


def save(model, folder: Path, processor=None, shard: str = "50GB", dtype: torch.dtype | None = None) -> Path:
    """``save_pretrained`` of the model and of its tokenizer or processor."""
    if dtype is not None:
        model = model.to(dtype)
    model.save_pretrained(folder, max_shard_size=shard)
    (processor or tokenizer()).save_pretrained(folder)
    return folder


def qwen2_vl(blocks: int = 2, seed: int = 0) -> tuple[Qwen2VLForConditionalGeneration, Qwen2VLProcessor]:
    """A random Qwen2-VL (fp32) that takes images of 16 to 576 pixels, four patches of 4 × 4 pixels a token."""
    words = tokenizer(visual=True)
    ids = {name: words.convert_tokens_to_ids(f"<|{token}|>") for name, token in _VISUAL_IDS.items()}
    vision = {"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": SIZE["hidden_size"], "mlp_ratio": 2}
    config = Qwen2VLConfig(
        text_config={
            **SIZE,
            "vocab_size": len(words),
            "num_hidden_layers": blocks,
            "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]},
            "pad_token_id": words.pad_token_id,
            "bos_token_id": words.bos_token_id,
            "eos_token_id": words.eos_token_id,
        },
        vision_config={**vision, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2},
        **ids,
    )
    torch.manual_seed(seed)
    model = spread(Qwen2VLForConditionalGeneration(config), seed)
    model.generation_config.eos_token_id = words.eos_token_id
    model.generation_config.pad_token_id = words.pad_token_id
    sizes = {"shortest_edge": 16, "longest_edge": 576}
    processor = Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(patch_size=4, merge_size=2, temporal_patch_size=2, size=sizes),
        tokenizer=words,
        video_processor=Qwen2VLVideoProcessor(patch_size=4, merge_size=2, temporal_patch_size=2, size=sizes),
        chat_template=CHAT,
    )
    return model, processor


_VISUAL_IDS = {
    "image_token_id": "image_pad",
    "video_token_id": "video_pad",
    "vision_start_token_id": "vision_start",
    "vision_end_token_id": "vision_end",
}
