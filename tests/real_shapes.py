"""Checkpoints at the published models' real shapes: configurations and headers are real, weights are holes in files.

Shapes are those of the models' public configurations.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

CONFIGS = {
    "internvl": {
        "model_type": "internvl",
        "architectures": ["InternVLForConditionalGeneration"],
        "tie_word_embeddings": False,
        "text_config": {
            "model_type": "qwen2",
            **{"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
            **{"num_key_value_heads": 2, "vocab_size": 151674, "tie_word_embeddings": False},
        },
        "vision_config": {
            "model_type": "internvl_vision",
            **{"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16},
            **{"image_size": [448, 448], "patch_size": [14, 14]},
        },
    },
    "qwen2_vl": {
        "model_type": "qwen2_vl",
        "architectures": ["Qwen2VLForConditionalGeneration"],
        **{"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28},
        **{"num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False},
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "vision_config": {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16, "mlp_ratio": 4},
    },
    "mistral": {
        "model_type": "mistral",
        "architectures": ["MistralForCausalLM"],
        **{"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
        **{"num_key_value_heads": 8, "vocab_size": 32000, "tie_word_embeddings": False},
    },
}
# what transformers calls a tensor → how it is published
STORED = {
    "internvl": {
        "model.language_model.": "language_model.model.",
        "model.vision_tower.": "vision_tower.",
        "model.multi_modal_projector.": "multi_modal_projector.",
        "lm_head.": "language_model.lm_head.",
    },
    "qwen2_vl": {"model.language_model.": "model.", "model.visual.": "visual."},
    "mistral": {},
}


def outline(backbone: str, folder: Path) -> torch.nn.Module:
    """The model without weights, from the configuration in ``folder``."""
    auto = AutoModelForCausalLM if backbone == "mistral" else AutoModelForImageTextToText
    with torch.device("meta"):
        return auto.from_config(AutoConfig.from_pretrained(folder))


def write(backbone: str, folder: Path) -> Path:
    """A bf16 checkpoint folder whose file of weights has a real header, the real length, and nothing on the disk."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIGS[backbone]), encoding="utf-8")
    entries, at = {}, 0
    for name, parameter in outline(backbone, folder).named_parameters():
        for theirs, ours in STORED[backbone].items():
            if name.startswith(theirs):
                name = ours + name.removeprefix(theirs)
                break
        entries[name] = {
            "dtype": "BF16",
            "shape": list(parameter.shape),
            "data_offsets": [at, at + 2 * parameter.numel()],
        }
        at += 2 * parameter.numel()
    header = json.dumps(entries).encode()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + at)
    return folder
