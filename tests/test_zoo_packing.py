"""Packed training sequences must be the same thing as separate chats, and training must resume exactly."""

import numpy as np
import pytest
import torch
from PIL import Image

from emkit.backbones import internvl
from emkit.zoo.image_training import TrainingSet, normalised, train
from emkit.zoo.model import create
from emkit.zoo.packing import chat, pack, prefix
from emkit.zoo.tokenizer import create_processor, create_tokenizer
from emkit.zoo.train import schedule

SETTINGS = {
    "image_size": 32,
    "patch_size": 8,
    "vision": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
    "text": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 256,
    },
}
WORDS = ["what", "colour", "is", "the", "circle", "red", "blue"]
QUESTIONS = [("what colour is the circle?", "red"), ("is the circle blue?", "[10,20,300,400]"), ("what?", "STOP")]


@pytest.fixture(scope="module")
def processor():
    return create_processor(SETTINGS, WORDS)


@pytest.fixture(scope="module")
def model(processor):
    return create(SETTINGS, processor, seed=3).eval()


@pytest.fixture(scope="module")
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def test_packed_chats_have_the_logits_and_targets_of_separate_chats(model, processor, image):
    chats = [chat(processor, q, a, dense=False) for q, a in QUESTIONS]
    packed = pack(prefix(processor), [chats, chats[:1]], processor.tokenizer.pad_token_id, 1.0)
    pixels = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())[None].expand(2, -1, -1, -1)
    inputs = {
        "input_ids": packed.input_ids,
        "position_ids": packed.position_ids,
        "attention_mask": packed.attention_mask,
    }
    features = internvl.image_features(model, normalised(pixels))
    with torch.no_grad():
        together = internvl.forward(model, inputs, features=features, positions=packed.predicts).logits
        alone, targets = [], []
        for q, a in [*QUESTIONS, QUESTIONS[0]]:
            batch = internvl.encode(processor, [image], [q], [a])
            logits = internvl.forward(model, batch).logits[0]
            where = batch["response_mask"][0].nonzero()[:, 0]
            alone.append(logits[where - 1])
            targets.append(batch["input_ids"][0, where])
    assert torch.equal(packed.targets, torch.cat(targets))
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_pixels_are_normalised_as_the_processor_does(processor, image):
    expected = processor(images=[image], text=["<IMG_CONTEXT>"], return_tensors="pt")["pixel_values"]
    got = normalised(torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())[None])
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_dense_weight_scales_only_dense_answers(processor):
    chats = [chat(processor, "what?", "red", dense=False), chat(processor, "what?", "red blue", dense=True)]
    packed = pack(prefix(processor), [chats], 0, 0.25)
    assert packed.weights.tolist() == [1.0] * 2 + [0.25] * 3


@pytest.mark.parametrize(
    "text", ["what colour is the circle?", "[120,340,560,785]", "STOP 42", "Zebra?", "yes; no\nred"]
)
def test_tokenizer_gives_text_back(text):
    tokenizer = create_tokenizer(WORDS)
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_words_and_numbers_are_single_tokens_and_unknown_capitals_are_spelled():
    tokenizer = create_tokenizer([*WORDS, "MOON", "RIVER"])
    assert tokenizer.tokenize("what colour") == ["what", " colour"]
    assert tokenizer.tokenize("[120,45]") == ["[", "120", ",", "45", "]"]
    assert tokenizer.tokenize("MOON RIVER") == ["MOON", " RIVER"]
    assert tokenizer.tokenize("STOP") == ["S", "T", "O", "P"]
    assert tokenizer.tokenize("(A) F") == ["(", "A", ")", " ", "F"]


@pytest.mark.parametrize("word", ["Moon", "MO2", "", "mo-on"])
def test_a_word_of_mixed_case_is_no_word_of_the_vocabulary(word):
    with pytest.raises(ValueError, match="neither a lowercase word nor one in capitals"):
        create_tokenizer([*WORDS, word])


def test_warm_up_ends_at_the_peak_and_the_cosine_at_two_percent():
    rates = [schedule(step, {"steps": 100, "warmup": 10}) for step in range(101)]
    assert rates[9] == 1.0 and max(rates) == 1.0
    assert rates[55] == pytest.approx(0.02 + 0.98 / 2)
    assert rates[100] == pytest.approx(0.02)


def test_a_cool_down_leaves_the_steps_before_it_alone_and_then_falls_linearly():
    long, cooled = {"steps": 200, "warmup": 10}, {"steps": 100, "warmup": 10, "horizon": 200, "cooldown": 40}
    assert all(schedule(step, long) == schedule(step, cooled) for step in range(61))
    shares = [schedule(step, cooled) / schedule(step, long) for step in (60, 80, 100)]
    assert shares == pytest.approx([1.0, 0.02 + 0.98 / 2, 0.02])


def test_training_that_was_killed_ends_with_the_same_weights(processor, image, tmp_path, monkeypatch):
    monkeypatch.setattr("emkit.zoo.train.SAVE_EVERY", 2)
    settings = {"steps": 6, "lr": 1e-3, "warmup": 2, "batch": 2, "questions": 1, "dense_questions": 0}
    settings |= {"dense_weight": 1.0, "weight_decay": 0.1}
    pixels = torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())[None].expand(4, -1, -1, -1)
    chats = [[chat(processor, q, a, dense=False)] for q, a in [*QUESTIONS, QUESTIONS[0]]]
    data = TrainingSet(chats, np.array([0, 0, 1, 1]), pixels)
    shares = np.ones(2)

    def run(state, kill_at=None):
        def progress(step, loss):
            if step == kill_at:
                raise KeyboardInterrupt

        model = create(SETTINGS, processor, seed=1)
        train(model, processor, data, settings, 5, state, shares, progress)
        return model.state_dict()

    whole = run(tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed.pt", kill_at=5)
    resumed = run(tmp_path / "killed.pt")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
