"""InternVL2.5's original layout (``internvl_chat``), which needs the authors' code, and transformers' ``internvl``.

Tensors correspond one to one, except that a vision block's fused ``attn.qkv`` is three matrices in transformers'. What
else such a checkpoint depends on is in the authors' code and not in its files: the system turn of its conversation
(``internvl/conversation.py``), dynamic tiling with a thumbnail, ImageNet's mean and deviation, and ``<|im_end|>`` as
the end of an answer. It is written into configuration, template and processor here, so that transformers' own classes
do the same. Only language models that transformers has under the same names are known: Qwen2's and Llama's, not
InternLM2's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from emkit import foreign
from emkit.bounds import bounded
from emkit.checkpoints import copy_side_files, settings
from emkit.errors import UserError
from emkit.originals.relaid import Part

KIND = "internvl_chat"
IMAGE, IMAGE_START, IMAGE_END, END = "<IMG_CONTEXT>", "<img>", "</img>", "<|im_end|>"
# system turns by the name of the conversation, as in the authors' code (MIT)
SYSTEM = {
    "internvl2_5": "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、"
    "清华大学及多家合作单位联合开发的多模态大语言模型。"
}
_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # ImageNet's
_LANGUAGE = {"Qwen2ForCausalLM": "qwen2", "LlamaForCausalLM": "llama"}

_VISION = {  # of a vision block: the original's name → transformers'
    "norm1": "layernorm_before",
    "norm2": "layernorm_after",
    "attn.proj": "attention.projection_layer",
    "attn.q_norm": "attention.q_norm",
    "attn.k_norm": "attention.k_norm",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
_RENAMED = {  # the same of other modules and parameters
    "vision_model.embeddings.class_embedding": "vision_tower.embeddings.cls_token",
    "vision_model.embeddings.position_embedding": "vision_tower.embeddings.position_embeddings",
    "vision_model.embeddings.patch_embedding": "vision_tower.embeddings.patch_embeddings.projection",
    "mlp1.0": "multi_modal_projector.layer_norm",
    "mlp1.1": "multi_modal_projector.linear_1",
    "mlp1.3": "multi_modal_projector.linear_2",
}
_BLOCK = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.(.+)")
_QKV = re.compile(r"attn\.qkv\.(weight|bias)")


# ---- tensors
def sources(names: Iterable[str]) -> dict[str, list[Part]]:
    """What each tensor of transformers' layout is made of: parts of the original's ``names``."""
    found: dict[str, list[Part]] = {}
    for name in names:
        module, _, kind = name.rpartition(".")
        if name in _RENAMED:
            found[_RENAMED[name]] = [Part(name)]
        elif module in _RENAMED:
            found[f"{_RENAMED[module]}.{kind}"] = [Part(name)]
        elif name.startswith("language_model."):
            found[name] = [Part(name)]
        elif block := _BLOCK.fullmatch(name):
            found |= _of_block(name, f"vision_tower.encoder.layer.{block[1]}.", block[2])
        else:
            raise _unknown(name)
    return found


def _of_block(name: str, prefix: str, rest: str) -> dict[str, list[Part]]:
    """One tensor of a vision block, by its ``rest``."""
    if fused := _QKV.fullmatch(rest):  # [3 d, d] or [3 d]: rows of q, then k, then v
        return {f"{prefix}attention.{which}_proj.{fused[1]}": [Part(name, i, 3)] for i, which in enumerate("qkv")}
    if rest in ("ls1", "ls2"):
        return {f"{prefix}lambda_{rest[2]}": [Part(name)]}
    module, _, kind = rest.rpartition(".")
    if module not in _VISION:
        raise _unknown(name)
    return {f"{prefix}{_VISION[module]}.{kind}": [Part(name)]}


def _unknown(name: str) -> UserError:
    return UserError(f"the tensor '{name}' is none of the layout {KIND} as emkit knows it")


# ---- configuration, tokenizer, template, processor
def write_side_files(folder: Path, out: Path) -> None:
    """Everything of transformers' layout but the weights; ``UserError`` for a variant that its class cannot hold."""
    import transformers

    raw = _settings(folder)
    copy_side_files(folder, out, lambda file: file.name not in ("config.json", "preprocessor_config.json"))
    tokenizer = _tokenizer(folder)
    config = _config(raw, tokenizer)
    side = raw["force_image_size"] or raw["vision_config"]["image_size"]
    tiles = {name: raw[f"{key}_dynamic_patch"] for name, key in (("min_patches", "min"), ("max_patches", "max"))}
    size = {"height": side, "width": side}
    transformers.InternVLProcessor(
        image_processor=transformers.GotOcr2ImageProcessor(
            size=size, crop_to_patches=bool(raw["dynamic_image_size"]), image_mean=_MEAN, image_std=_STD, **tiles
        ),
        tokenizer=tokenizer,
        video_processor=transformers.InternVLVideoProcessor(size=size, image_mean=_MEAN, image_std=_STD),
        image_seq_length=config.image_seq_length,
        chat_template=chat_template(_system(raw)),
    ).save_pretrained(out)
    config.save_pretrained(out)
    end = tokenizer.convert_tokens_to_ids(END)
    transformers.GenerationConfig(eos_token_id=end, pad_token_id=tokenizer.pad_token_id).save_pretrained(out)


def chat_template(system: str) -> str:
    """The authors' conversation as a chat template: the system turn first, and an image's tokens before a newline."""
    turn = "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    return (
        "{% if not messages or messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\n' + "
        + json.dumps(system, ensure_ascii=False)
        + " + '<|im_end|>\\n' }}{% endif %}"
        "{% for message in messages %}"
        + turn
        + "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\\n' }}"
        "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
        "{{ '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )


# what the authors' configuration class fills in where a file says nothing
_DEFAULTS: dict[str, Any] = {
    "select_layer": -1,
    "force_image_size": None,
    "downsample_ratio": 0.5,
    "template": None,
    "dynamic_image_size": False,
    "use_thumbnail": False,
    "ps_version": "v1",
    "min_dynamic_patch": 1,
    "max_dynamic_patch": 6,
    "pad2square": False,
    "use_backbone_lora": 0,
    "use_llm_lora": 0,
}
_VISION_DEFAULTS: dict[str, Any] = {
    "num_channels": 3,
    "patch_size": 14,
    "image_size": 224,
    "qkv_bias": False,
    "hidden_size": 3200,
    "num_attention_heads": 25,
    "intermediate_size": 12800,
    "qk_normalization": True,
    "num_hidden_layers": 48,
    "hidden_act": "gelu",
    "norm_type": "rms_norm",
    "layer_norm_eps": 1e-6,
    "initializer_factor": 0.1,
}


def _settings(folder: Path) -> dict[str, Any]:
    """``config.json`` with the authors' defaults; ``UserError`` for what transformers' class does otherwise."""
    raw = _DEFAULTS | foreign.mapping(folder / "config.json")
    if not isinstance(raw.get("vision_config"), Mapping) or not isinstance(raw.get("llm_config"), Mapping):
        raise UserError(f"{folder}: its config.json has no vision_config and llm_config: download it again")
    raw["vision_config"] = _VISION_DEFAULTS | dict(raw["vision_config"])
    vision, language = raw["vision_config"], (raw["llm_config"].get("architectures") or ["?"])[0]
    reasons = {
        f"its language model is a {language}, which transformers holds under other names": language not in _LANGUAGE,
        f"it takes the vision tower's layer {raw['select_layer']}, not the last": raw["select_layer"] != -1,
        f"its pixel shuffle is {raw['ps_version']}, not v2": raw["ps_version"] != "v2",
        "it pads images to squares": bool(raw["pad2square"]),
        "it cuts images without a thumbnail": bool(raw["dynamic_image_size"]) and not raw["use_thumbnail"],
        "LoRA matrices are still apart in it": bool(raw["use_backbone_lora"] or raw["use_llm_lora"]),
        "its normalised queries have another epsilon": bool(vision["qk_normalization"])
        and vision["layer_norm_eps"] != 1e-6,
        f"its conversation '{raw['template']}' is not known here": raw["template"] not in SYSTEM,
    }
    for reason, wrong in reasons.items():
        if wrong:
            raise UserError(f"{folder} is an {KIND} that emkit cannot convert: {reason}")
    return raw


def _system(raw: Mapping[str, Any]) -> str:
    """What the conversation begins with; a configuration may have words of its own."""
    return raw["system_message"] if isinstance(raw.get("system_message"), str) else SYSTEM[raw["template"]]


def _tokenizer(folder: Path) -> Any:
    """The folder's tokenizer with the names that transformers' processor asks for."""
    from transformers import AutoTokenizer

    names = {"start_image_token": IMAGE_START, "end_image_token": IMAGE_END, "context_image_token": IMAGE}
    # transformers' processor wants a mark for videos, too. A new one would have no row in the embedding; this one the
    # original has and never uses, and no question holds it.
    names["video_token"] = "</quad>"
    offline = {"local_files_only": True, "trust_remote_code": False}
    known = AutoTokenizer.from_pretrained(folder, **offline).get_vocab()
    for token in (*names.values(), END, "<|im_start|>"):
        if token not in known:
            raise UserError(f"{folder}: its tokenizer does not know {token}: download its tokenizer files again")
    tokenizer = AutoTokenizer.from_pretrained(folder, **offline, extra_special_tokens=names, eos_token=END)
    tokenizer.chat_template = None  # the processor's, which knows images
    return tokenizer


def _config(raw: Mapping[str, Any], tokenizer: Any) -> Any:
    """transformers' configuration."""
    from transformers import AutoConfig, InternVLConfig, InternVLVisionConfig

    vision, side = raw["vision_config"], raw["force_image_size"] or raw["vision_config"]["image_size"]
    language = settings(raw["llm_config"])
    kind = _LANGUAGE[raw["llm_config"]["architectures"][0]]
    # the authors untie the head, whatever the file says
    with bounded(f"llm_config, of {raw['llm_config'].get('num_hidden_layers')} blocks,"):
        text = AutoConfig.for_model(**language | {"model_type": kind, "tie_word_embeddings": False})
    same = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "norm_type")
    return InternVLConfig(
        vision_config=InternVLVisionConfig(
            **{key: vision[key] for key in (*same, "layer_norm_eps", "image_size", "patch_size", "num_channels")},
            attention_bias=vision["qkv_bias"],
            use_qk_norm=vision["qk_normalization"],
            layer_scale_init_value=vision["initializer_factor"],
        ),
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=int((side // vision["patch_size"]) ** 2 * raw["downsample_ratio"] ** 2),
        downsample_ratio=raw["downsample_ratio"],
        tie_word_embeddings=False,
        architectures=["InternVLForConditionalGeneration"],
        dtype=raw.get("torch_dtype") or raw.get("dtype"),
    )
