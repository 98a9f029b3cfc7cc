"""Tiny models in published layouts, with numbers in place of weights: every tensor is drawn from its name."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Tokenizer

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>"]
SPECIAL += ["<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"]
WIDTH, SEEN, INNER, KEYS = 48, 32, 64, 24  # of the language model, the tower, their MLPs, and all keys' heads


def write_tokenizer(folder: Path, special: Sequence[str] = SPECIAL, chat: bool = True) -> dict[str, int]:
    """Qwen2's files as they are published, over bytes and four merges; the ids of the ``special`` tokens."""
    vocabulary = {character: i for i, character in enumerate(sorted(ByteLevel.alphabet()))}
    merges = ["t h", "th e", "i n", "Ġ the"]
    vocabulary |= {"".join(pair.split()): len(vocabulary) + i for i, pair in enumerate(merges)}
    ids = {token: len(vocabulary) + i for i, token in enumerate(special)}
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False) | {"special": True}
    template = (
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>'"
        " + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    settings = {
        "added_tokens_decoder": {str(i): {"content": token, **flags} for token, i in ids.items()},
        "additional_special_tokens": list(special[1:]),
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 8192,
        "tokenizer_class": "Qwen2Tokenizer",
        "chat_template": template,
    }
    if not chat:
        del settings["chat_template"]
    marks = {key: settings[key] for key in ("additional_special_tokens", "eos_token", "pad_token")}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    for name, value in (("added_tokens", ids), ("tokenizer_config", settings), ("special_tokens_map", marks)):
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return ids


def internvl_chat(folder: Path, seed: int = 0, like: Path | None = None, **changes) -> Path:
    """An InternVL2.5 in its original layout, code files included (which raise when they are run).

    ``like``: an expert of the model there, near it. ``changes``: of the configuration; of the tower's as ``vision``.
    """
    folder.mkdir(parents=True)
    ids = write_tokenizer(folder)
    vision = {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        **{"hidden_size": SEEN, "intermediate_size": INNER, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"image_size": 56, "patch_size": 14, "qkv_bias": True, "qk_normalization": False, "norm_type": "layer_norm"},
        **{"hidden_act": "gelu", "initializer_factor": 1.0, "drop_path_rate": 0.1, "use_flash_attn": True},
        **changes.pop("vision", {}),
    }
    language = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        **{"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": 3, "num_attention_heads": 4},
        **{"num_key_value_heads": 2, "vocab_size": max(ids.values()) + 1, "max_position_embeddings": 32768},
        **{"rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": False, "hidden_act": "silu"},
        **{"attn_implementation": "eager", "eos_token_id": ids["<|im_end|>"], "torch_dtype": "float32"},
    }
    config = {
        "architectures": ["InternVLChatModel"],
        "auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"},
        "model_type": "internvl_chat",
        **{"downsample_ratio": 0.5, "dynamic_image_size": True, "force_image_size": 56, "use_thumbnail": True},
        **{"min_dynamic_patch": 1, "max_dynamic_patch": 12, "pad2square": False, "ps_version": "v2"},
        **{"select_layer": -1, "template": "internvl2_5", "torch_dtype": "float32", "use_llm_lora": 0},
        **{"llm_config": language, "vision_config": vision, **changes},
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [ids["<|im_start|>"]]}), encoding="utf-8"
    )
    (folder / "modeling_internvl_chat.py").write_text("raise RuntimeError('this is never run')\n", encoding="utf-8")
    shapes = _shapes(vision, language["vocab_size"])
    values = {name: value(name, shape) for name, shape in shapes.items()}
    if like is not None:
        values = {name: tensor + 0.05 * value(f"{name} {seed}", shapes[name]) for name, tensor in values.items()}
    save_file(values, folder / "model.safetensors", {"format": "pt"})
    return folder


def value(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor's numbers, the same in every process: normal, around one for scales."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    centre = float(name.endswith((".ls1", ".ls2")) or ("norm" in name and name.endswith("weight")))
    return centre + (0.3 if len(shape) > 1 else 0.2) * torch.randn(shape, generator=generator)


def _shapes(vision: dict, tokens: int) -> dict[str, tuple[int, ...]]:
    """The tensors of the authors' class: 77 of them here."""
    found: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.class_embedding": (1, 1, SEEN),
        "vision_model.embeddings.position_embedding": (1, 17, SEEN),
        "vision_model.embeddings.patch_embedding.weight": (SEEN, 3, 14, 14),
        "vision_model.embeddings.patch_embedding.bias": (SEEN,),
        "language_model.model.embed_tokens.weight": (tokens, WIDTH),
        "language_model.model.norm.weight": (WIDTH,),
        "language_model.lm_head.weight": (tokens, WIDTH),
    }
    for i, (rows, columns) in {0: (4 * SEEN, 0), 1: (WIDTH, 4 * SEEN), 3: (WIDTH, WIDTH)}.items():
        found |= {f"mlp1.{i}.weight": (rows, columns) if columns else (rows,), f"mlp1.{i}.bias": (rows,)}
    for i in range(vision["num_hidden_layers"]):
        block = f"vision_model.encoder.layers.{i}."
        found |= {f"{block}ls{j}": (SEEN,) for j in (1, 2)} | {f"{block}norm{j}.weight": (SEEN,) for j in (1, 2)}
        if vision["norm_type"] == "layer_norm":
            found |= {f"{block}norm{j}.bias": (SEEN,) for j in (1, 2)}
        if vision["qk_normalization"]:
            found |= {f"{block}attn.{which}_norm.weight": (SEEN,) for which in "qk"}
        biased = {"attn.proj": (SEEN, SEEN), "mlp.fc1": (INNER, SEEN), "mlp.fc2": (SEEN, INNER)}
        biased |= {"attn.qkv": (3 * SEEN, SEEN)} if vision["qkv_bias"] else {}
        found |= {f"{block}{name}.weight": shape for name, shape in biased.items()}
        found |= {f"{block}{name}.bias": shape[:1] for name, shape in biased.items()}
        found[f"{block}attn.qkv.weight"] = (3 * SEEN, SEEN)
    return found | _blocks("language_model.model.layers", biased=True)


def _blocks(prefix: str, biased: bool) -> dict[str, tuple[int, ...]]:
    """The tensors of three blocks of Qwen2's, or of Mistral's, whose projections have no biases."""
    found: dict[str, tuple[int, ...]] = {}
    for i in range(3):
        block = f"{prefix}.{i}."
        rows = {"q": WIDTH, "k": KEYS, "v": KEYS}
        found |= {f"{block}self_attn.{which}_proj.weight": (size, WIDTH) for which, size in rows.items()}
        found |= {f"{block}self_attn.{which}_proj.bias": (size,) for which, size in rows.items() if biased}
        found |= {f"{block}mlp.{which}_proj.weight": (INNER, WIDTH) for which in ("gate", "up")}
        found |= {f"{block}self_attn.o_proj.weight": (WIDTH, WIDTH), f"{block}mlp.down_proj.weight": (WIDTH, INNER)}
        found |= {f"{block}{norm}_layernorm.weight": (WIDTH,) for norm in ("input", "post_attention")}
    return found


def qwen2_vl(folder: Path, seed: int = 0, like: Path | None = None) -> Path:
    """A Qwen2-VL as it is published: a flat configuration, ``visual.`` names, shards, settings of generation."""
    folder.mkdir(parents=True)
    marks = ["<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
    ids = write_tokenizer(folder, [*SPECIAL[:3], *marks])
    places = {f"{name}_token_id": ids[f"<|{mark}|>"] for name, mark in _QWEN_IDS.items()}
    config = {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        **places,
        **{"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": 3, "num_attention_heads": 4},
        **{"num_key_value_heads": 2, "vocab_size": max(ids.values()) + 1, "max_position_embeddings": 32768},
        **{"rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": False, "hidden_act": "silu"},
        **{"max_window_layers": 28, "sliding_window": 32768, "use_sliding_window": False, "torch_dtype": "bfloat16"},
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 2, 2]},
        "vision_config": {
            **{"depth": 2, "embed_dim": SEEN, "mlp_ratio": 2, "num_heads": 4, "in_chans": 3, "hidden_size": WIDTH},
            **{"patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14, "temporal_patch_size": 2},
        },
    }
    generation = {"do_sample": True, "repetition_penalty": 1.05, "temperature": 0.1, "top_k": 1, "top_p": 0.001}
    generation |= {"eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]], "pad_token_id": ids["<|endoftext|>"]}
    pictures = {
        **{"min_pixels": 3136, "max_pixels": 12845056, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2},
        **{"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]},
        **{"image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2VLProcessor"},
    }
    template = (
        "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system\n"
        "You are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
        "{% if message['content'] is string %}{{ message['content'] }}<|im_end|>\n{% else %}"
        "{% for content in message['content'] %}{% if content['type'] == 'image' %}"
        "<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
        "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    files = {"config": config, "generation_config": generation, "preprocessor_config": pictures}
    for name, value_ in {**files, "chat_template": {"chat_template": template}}.items():
        (folder / f"{name}.json").write_text(json.dumps(value_), encoding="utf-8")
    _save(folder, _qwen2_vl_shapes(config["vocab_size"]), seed, like is not None, torch.bfloat16, shards=3)
    return folder


_QWEN_IDS = {"bos": "endoftext", "eos": "im_end", "vision_start": "vision_start", "vision_end": "vision_end"}
_QWEN_IDS |= {"vision": "vision_pad", "image": "image_pad", "video": "video_pad"}


def _qwen2_vl_shapes(tokens: int) -> dict[str, tuple[int, ...]]:
    merged = 4 * SEEN
    found: dict[str, tuple[int, ...]] = {
        "visual.patch_embed.proj.weight": (SEEN, 3, 2, 14, 14),
        "model.embed_tokens.weight": (tokens, WIDTH),
        "model.norm.weight": (WIDTH,),
        "lm_head.weight": (tokens, WIDTH),
        **{f"visual.merger.ln_q.{kind}": (SEEN,) for kind in ("weight", "bias")},
        **{"visual.merger.mlp.0.weight": (merged, merged), "visual.merger.mlp.0.bias": (merged,)},
        **{"visual.merger.mlp.2.weight": (WIDTH, merged), "visual.merger.mlp.2.bias": (WIDTH,)},
    }
    sizes = {
        "attn.qkv": (3 * SEEN, SEEN),
        "attn.proj": (SEEN, SEEN),
        "mlp.fc1": (INNER, SEEN),
        "mlp.fc2": (SEEN, INNER),
    }
    for i in range(2):
        block = f"visual.blocks.{i}."
        found |= {f"{block}norm{j}.{kind}": (SEEN,) for j in (1, 2) for kind in ("weight", "bias")}
        found |= {f"{block}{name}.weight": shape for name, shape in sizes.items()}
        found |= {f"{block}{name}.bias": shape[:1] for name, shape in sizes.items()}
    return found | _blocks("model.layers", biased=True)


def mistral(folder: Path, seed: int = 0, like: Path | None = None, chat: bool = True) -> Path:
    """A Mistral as it is published; ``chat``: with a chat template, which the published base has not."""
    folder.mkdir(parents=True)
    ids = write_tokenizer(folder, SPECIAL[:3], chat)
    tokenizer = Qwen2Tokenizer.from_pretrained(folder).backend_tokenizer  # as one file, which a Mistral has
    for name in ("vocab.json", "merges.txt", "added_tokens.json"):
        (folder / name).unlink()
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    config = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        **{"bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"]},
        **{"hidden_size": WIDTH, "intermediate_size": INNER, "num_hidden_layers": 3, "num_attention_heads": 4},
        **{"num_key_value_heads": 2, "vocab_size": max(ids.values()) + 1, "max_position_embeddings": 32768},
        **{"rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False},
        **{"hidden_act": "silu", "torch_dtype": "bfloat16"},
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shapes: dict[str, tuple[int, ...]] = {"model.norm.weight": (WIDTH,)}
    shapes |= dict.fromkeys(("model.embed_tokens.weight", "lm_head.weight"), (config["vocab_size"], WIDTH))
    _save(folder, shapes | _blocks("model.layers", biased=False), seed, like is not None, torch.bfloat16, shards=2)
    return folder


def _save(folder: Path, shapes: dict, seed: int, near: bool, dtype: torch.dtype, shards: int) -> None:
    """Write the tensors in so many files; ``near``: those of an expert."""
    values = {name: value(name, shape) for name, shape in shapes.items()}
    if near:
        values = {name: tensor + 0.05 * value(f"{name} {seed}", shapes[name]) for name, tensor in values.items()}
    names = sorted(values)
    files = {f"model-{i + 1:05d}-of-{shards:05d}.safetensors": names[i::shards] for i in range(shards)}
    for file, own in files.items():
        save_file({name: values[name].to(dtype) for name in own}, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, own in files.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
