"""What another family of models costs: an image backbone one file, a language model none."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import own_models as own
import pytest
import tiny_models as tiny
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from emkit import backbones

ROOT = Path(__file__).parent.parent
LLAVA = '''"""LLaVA 1.5: a CLIP tower, whose features pass through a projector that stays the base's."""

import re

import torch

from emkit.backbones.base import BLOCK
from emkit.backbones.images import ImageBackbone


class Llava(ImageBackbone):
    kinds = ("llava",)
    MERGED = re.compile(rf"(?:language_model\\.model|model\\.language_model)\\.{BLOCK}")

    def tower(self, model):
        return model.model.vision_tower

    def trainable_image_features(self, model, *inputs):
        return torch.cat(list(model.model.get_image_features(inputs[0].to(model.dtype)).pooler_output))
'''
ASK = """
import json, sys, torch
from PIL import Image
from emkit import backbones
assert "llava" in backbones.NAMES
llava = backbones.get("llava")
model, processor = llava.load(sys.argv[1])
image = Image.open(sys.argv[2])
images, questions = [image, None, image], ["what is it?", "hm", "and this?"]
answers = llava.generate(model, processor, images, questions, 6)
batch = llava.encode(processor, images, questions, ["yes", "", "no no"])
with torch.no_grad():
    found = llava.forward(model, batch, hidden_layer=1)
    stock = model(**{k: v for k, v in batch.items() if k != "response_mask"}, output_hidden_states=True)
real = batch["attention_mask"].bool()
torch.testing.assert_close(found.logits[real], stock.logits[real])
torch.testing.assert_close(found.hidden[real], stock.hidden_states[1][real])
seen = llava.image_features(model, llava.encode(processor, [image], [""])["pixel_values"])
features = [seen, torch.zeros(0), seen]
assert llava.generate(model, processor, images, questions, 6, features=lambda a, z: torch.cat(features[a:z])) == answers
print(json.dumps(answers))
"""


def llava(seed: int):
    words = tiny.tokenizer(visual=True)
    text = {**tiny.SIZE, "vocab_size": len(words), "num_hidden_layers": 2, "num_key_value_heads": 1}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}
    token = words.convert_tokens_to_ids("<|image_pad|>")
    config = LlavaConfig(
        text_config=LlamaConfig(**text, pad_token_id=0, bos_token_id=1, eos_token_id=2),
        vision_config=CLIPVisionConfig(**vision, image_size=16, patch_size=8, projection_dim=16),
        image_token_id=token,
        image_seq_length=4,
    )
    torch.manual_seed(1)
    model = tiny.spread(tiny.spread(LlavaForConditionalGeneration(config), 1), seed, 0.05 * (seed > 1))
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<|image_pad|>",
        chat_template=tiny.CHAT,
    )
    return model, processor


def run(*arguments: str, folder: Path, package: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(package)}
    ran = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_an_image_backbone_is_one_file(tmp_path):
    """LLaVA, which emkit does not have: merged by two methods, one of them learned, and asked about images."""
    shutil.copytree(ROOT / "emkit", tmp_path / "package" / "emkit", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "package" / "emkit" / "backbones" / "llava.py").write_text(LLAVA, encoding="utf-8")
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for seed, name in enumerate(("base", "math", "code"), start=1):
        model, processor = llava(seed)
        tiny.save(model, tmp_path / name, processor)
        lines = [{"image": "a.png", "question": "what is it?"}, {"prompt": f"what of {name}?"}]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    for method in ("ties", "expert_merging"):
        given = own.flags(tmp_path, tmp_path / method, method)
        run("-m", "emkit.cli", *given, folder=tmp_path, package=tmp_path / "package")
        base, merged = own.tensors(tmp_path / "base"), own.tensors(tmp_path / method)
        changed = {name for name in base if not torch.equal(base[name], merged[name])}
        assert len(changed) == 7 * 2 and all(".layers." in name and "language_model" in name for name in changed)
        said = run("-c", ASK, str(tmp_path / method), "a.png", folder=tmp_path, package=tmp_path / "package")
        assert len(json.loads(said)) == 3


@pytest.mark.parametrize("kind, matrices", [("olmo2", 7), ("phi", 6), ("falcon", 4), ("gpt_bigcode", 4)])
def test_a_language_model_is_no_file(kind, matrices, tmp_path):
    """Architectures that nothing in emkit names: merged with a learned method, and asked."""
    assert not any(kind in path.read_text(encoding="utf-8") for path in (ROOT / "emkit" / "backbones").glob("*.py"))
    for seed, name in enumerate(("base", "math", "code"), start=1):
        words = tiny.tokenizer()
        ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        config = AutoConfig.for_model(kind, **tiny.SIZE, vocab_size=len(words), num_hidden_layers=2, **ids)
        torch.manual_seed(1)
        model = tiny.spread(tiny.spread(AutoModelForCausalLM.from_config(config), 1), seed, 0.05 * (seed > 1))
        tiny.save(model, tmp_path / name, words)
        (tmp_path / f"{name}.jsonl").write_text(f'{{"prompt": "Tell of {name}."}}\n')
    out = own.merge(tmp_path, tmp_path / "out", "expert_merging")
    base, merged = own.tensors(tmp_path / "base"), own.tensors(out)
    changed = [name for name in base if not torch.equal(base[name], merged[name])]
    assert len(changed) == matrices * 2
    causal_lm = backbones.get("causal_lm")
    model, tokenizer = causal_lm.load(out)
    stock, words = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    for question, answer in zip(
        ["Who?", "And why?"], causal_lm.generate(model, tokenizer, [None] * 2, ["Who?", "And why?"], 5)
    ):
        text = words.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )
        asked = words(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        tokens = stock.generate(asked, attention_mask=torch.ones_like(asked), max_new_tokens=5, do_sample=False)
        assert words.decode(tokens[0, asked.shape[1] :], skip_special_tokens=True) == answer
