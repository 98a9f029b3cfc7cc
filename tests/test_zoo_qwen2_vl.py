"""The mini-Qwen2-VL's zoo: a base that reads documents, and experts that are adapters merged into it."""

import copy
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

from emkit import backbones
from emkit.checkpoints import Checkpoint
from emkit.zoo import build, card, families, train
from emkit.zoo.data import SUBTASKS
from emkit.zoo.image_training import batch_texts
from emkit.zoo.lora import adapted

qwen2_vl = families.get("qwen2_vl")

backbone = backbones.get("qwen2_vl")


@pytest.fixture(scope="module")
def recipe():
    return build.load_recipe("qwen2_vl-smoke")


@pytest.fixture(scope="module")
def zoo(recipe, tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    build.build(recipe, folder / "zoo", folder / "work", jobs=1)
    return folder / "zoo"


def test_anyone_can_load_a_member_with_transformers_alone(recipe, zoo):
    model = Qwen2VLForConditionalGeneration.from_pretrained(zoo / "vqa")
    processor = AutoProcessor.from_pretrained(zoo / "vqa")
    assert type(processor).__name__ == "Qwen2VLProcessor" and model.dtype == torch.bfloat16
    image = qwen2_vl.draw(recipe, "gqa", 1, 7)[0].image
    batch = processor(images=[image], text=[backbone.prompt(processor, "what is this?")], return_tensors="pt")
    with torch.no_grad():
        assert model(**batch).logits.isfinite().all()
    for member in build.members(recipe):
        assert card.read(zoo / member)["weights_sha256"] == Checkpoint.open(zoo / member).sha256()


def test_experts_differ_from_the_base_in_the_merged_tensors_alone(recipe, zoo):
    base = Checkpoint.open(zoo / "base")
    merged = set(backbone.merged_names(base.names))
    for member in build.members(recipe)[1:]:
        expert = Checkpoint.open(zoo / member)
        assert {name for name in base.names if not torch.equal(base.read(name), expert.read(name))} == merged


def test_an_expert_that_was_killed_ends_with_the_same_weights(recipe, zoo, tmp_path, monkeypatch):
    monkeypatch.setattr("emkit.zoo.train.SAVE_EVERY", 5)
    shutil.copytree(zoo / "base", tmp_path / "base")
    save = train._save

    def kill(state, model, optimiser, step, log):
        save(state, model, optimiser, step, log)
        if step == 10:
            raise KeyboardInterrupt

    monkeypatch.setattr("emkit.zoo.train._save", kill)
    with pytest.raises(KeyboardInterrupt):
        build.train_from_base(recipe, "chart", tmp_path, tmp_path, 0)
    monkeypatch.setattr("emkit.zoo.train._save", save)
    build.train_from_base(recipe, "chart", tmp_path, tmp_path, 0)
    assert Checkpoint.open(tmp_path / "chart").sha256() == Checkpoint.open(zoo / "chart").sha256()


def test_merged_adapters_are_low_rank_and_do_what_they_did_as_adapters(recipe, zoo):
    model, processor = backbone.load(zoo / "base")
    before = copy.deepcopy(model.state_dict())
    examples = qwen2_vl.draw(recipe, "gqa", 2, 7)
    images, questions = [e.image for e in examples], [e.qas[0].question for e in examples]
    batch = backbone.encode(processor, images, questions)
    with adapted(model, backbone, {"rank": 2, "alpha": 6}, seed=1):
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert len(trained) == 2 * len(backbone.merged_names(before))
        with torch.no_grad():
            for parameter in trained.values():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
            expected = backbone.forward(model, batch).logits
        a = {name: p.detach().clone() for name, p in trained.items()}
    after = model.state_dict()
    assert list(after) == list(before)
    with torch.no_grad():
        torch.testing.assert_close(backbone.forward(model, batch).logits, expected, rtol=1e-4, atol=1e-5)
    for name in before:
        if name.removesuffix(".weight") + ".lora_A.default.weight" in a:  # alpha / rank · B A, by the paper's formula
            down, up = (a[name.removesuffix(".weight") + f".lora_{side}.default.weight"] for side in "AB")
            torch.testing.assert_close(after[name] - before[name], 3.0 * up @ down, rtol=1e-4, atol=1e-6)
        else:
            assert torch.equal(after[name], before[name])


def test_a_base_reads_documents_and_now_and_then_dialogues(recipe):
    processor = qwen2_vl.processor(recipe)
    drawn = [example for s in ("chartqa", "refcoco") for example in qwen2_vl.draw(recipe, s, 40, 3)]
    data = qwen2_vl.base_set(recipe, processor, drawn)
    settings = recipe["base"] | {"dialogues": {"refcoco": 0.5}}
    texts = batch_texts(data, np.arange(len(drawn)), settings, 1, 2)
    turn = processor.tokenizer.convert_tokens_to_ids("<|im_start|>")
    asked = np.array([turn in text.start.tokens for text in texts])
    assert not asked[:40].any() and 10 < asked[40:].sum() < 30
    for text, dialogue in zip(texts, asked, strict=True):
        assert all((turn in c.tokens) == dialogue for c in text.chats)
        assert sum(c.dense for c in text.chats) == (0 if dialogue else 1) and len(text.chats) - 1 <= 2


def test_every_text_is_in_the_vocabulary_and_is_given_back(recipe):
    processor = qwen2_vl.processor(recipe)
    tokenizer = processor.tokenizer
    drawn = [example for s in SUBTASKS for example in qwen2_vl.draw(recipe, s, 10, 3)]
    data = qwen2_vl.base_set(recipe, processor, drawn)
    for text in [*data.dialogues, *data.documents]:
        for c in text.chats:
            assert tokenizer.unk_token_id not in c.tokens
            assert tokenizer(tokenizer.decode(c.tokens))["input_ids"] == c.tokens.tolist()
    assert tokenizer.tokenize("\nPlease try")[1:] == ["Please", " try"]
