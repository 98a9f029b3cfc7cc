"""Packed training sequences must be the same thing as separate chats, and training must resume exactly."""

import numpy as np
import pytest
import torch
from PIL import Image

from emkit import backbones
from emkit.zoo import families
from emkit.zoo.image_training import Text, TrainingSet, train
from emkit.zoo.images import Patches, Squares
from emkit.zoo.model import create, create_qwen2_vl
from emkit.zoo.packing import pack
from emkit.zoo.tokenizer import create_processor, create_qwen2_vl_processor, create_tokenizer
from emkit.zoo.train import schedule

internvl = families.get("internvl")
qwen2_vl = families.get("qwen2_vl")

TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
}
SETTINGS = {
    "image_size": 32,
    "patch_size": 8,
    "vision": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32},
    "text": TEXT,
}
QWEN2_VL = {
    **{"patch_size": 8, "merge_size": 2, "temporal_patch_size": 2, "pixels": [256, 4096]},
    "vision": {"embed_dim": 16, "depth": 1, "num_heads": 2, "mlp_ratio": 2},
    "text": TEXT | {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0, "mrope_section": [2, 1, 1]}},
}
WORDS = ["what", "colour", "is", "the", "circle", "red", "blue"]
QUESTIONS = [("what colour is the circle?", "red"), ("is the circle blue?", "[10,20,300,400]"), ("what?", "STOP")]


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8))


class InternVL:
    """A tiny model of the family, and two images that it takes."""

    name, family, images = "internvl", internvl, (picture(32, 32), picture(32, 32))

    def __init__(self):
        self.processor = create_processor(SETTINGS, WORDS)
        self.model = create(SETTINGS, self.processor, seed=3).eval()
        self.kept = Squares.of(self.images)
        self.starts = [internvl.prefix(self.processor)] * 2


class Qwen2VL:
    """The same; the images are of different sizes."""

    name, family, images = "qwen2_vl", qwen2_vl, (picture(48, 16), picture(32, 64))

    def __init__(self):
        self.processor = create_qwen2_vl_processor(QWEN2_VL, WORDS)
        self.model = create_qwen2_vl(QWEN2_VL, self.processor, seed=3).eval()
        self.kept = Patches.of(self.images, 8, 2, 2)
        opening = "<|im_start|>user\n<|vision_start|>"
        self.starts = [qwen2_vl.prefix(self.processor, image.size, opening) for image in self.images]


@pytest.fixture(scope="module", params=[InternVL, Qwen2VL], ids=lambda kind: kind.name)
def tiny(request):
    return request.param()


@pytest.fixture(scope="module")
def processor():
    return create_processor(SETTINGS, WORDS)


def test_packed_chats_have_the_logits_and_targets_of_separate_chats(tiny):
    chats = [tiny.family.chat(tiny.processor, q, a, dense=False) for q, a in QUESTIONS]
    packed = pack(tiny.starts, [chats, chats[:1]], tiny.processor.tokenizer.pad_token_id, 1.0)
    backbone = backbones.get(tiny.name)
    features = backbone.image_features(tiny.model, *tiny.kept.inputs(np.arange(2)))
    asked = [(tiny.images[0], *qa) for qa in QUESTIONS] + [(tiny.images[1], *QUESTIONS[0])]
    with torch.no_grad():
        together = backbone.forward(tiny.model, packed.inputs, features=features, positions=packed.predicts).logits
        alone, targets = [], []
        for image, q, a in asked:
            batch = backbone.encode(tiny.processor, [image], [q], [a])
            logits = backbone.forward(tiny.model, batch).logits[0]
            where = batch["response_mask"][0].nonzero()[:, 0]
            alone.append(logits[where - 1])
            targets.append(batch["input_ids"][0, where])
    assert torch.equal(packed.targets, torch.cat(targets))
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_kept_images_are_what_the_processor_makes_of_them(tiny):
    expected = tiny.processor(
        images=list(tiny.images), text=[tiny.processor.image_token] * 2, return_tensors="pt", padding=True
    )
    got = tiny.kept.inputs(np.arange(2))
    for name, kept in zip(backbones.get(tiny.name).VISION, got, strict=True):
        torch.testing.assert_close(kept, expected[name], rtol=0, atol=1e-5)


def test_features_are_kept_image_by_image(tiny):
    see = backbones.get(tiny.name).image_features
    kept = see(tiny.model, *tiny.kept.inputs(np.arange(2)))
    for row in (1, 0):
        picked = tiny.kept.pick(kept, np.array([row]))
        torch.testing.assert_close(picked, see(tiny.model, *tiny.kept.inputs(np.array([row]))), rtol=1e-5, atol=1e-6)


def test_patches_are_laid_out_as_the_vision_tower_has_them():
    """A patch's own pixels tell its row and column; so must what is laid out beside them."""
    image = np.zeros((32, 48, 3), np.uint8)
    rows, columns = np.indices((4, 6))
    image[..., 0], image[..., 1] = np.kron(rows, np.ones((8, 8))), np.kron(columns, np.ones((8, 8)))
    kept = Patches.of([Image.fromarray(image)], 8, 2, 2)
    assert torch.equal(kept.pixels[:, 0, 0, 0], torch.from_numpy(kept.laid_out(rows)).to(torch.uint8))
    assert torch.equal(kept.pixels[:, 1, 7, 7], torch.from_numpy(kept.laid_out(columns)).to(torch.uint8))


def test_dense_weight_scales_only_dense_answers(processor):
    chats = [
        internvl.chat(processor, "what?", "red", dense=False),
        internvl.chat(processor, "what?", "red blue", dense=True),
    ]
    packed = pack([internvl.prefix(processor)], [chats], 0, 0.25)
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


def test_training_that_was_killed_ends_with_the_same_weights(processor, tmp_path, monkeypatch):
    monkeypatch.setattr("emkit.zoo.train.SAVE_EVERY", 2)
    settings = {"steps": 6, "lr": 1e-3, "warmup": 2, "batch": 2, "questions": 1, "dense_questions": 0}
    settings |= {"dense_weight": 1.0, "weight_decay": 0.1}
    start = internvl.prefix(processor)
    texts = [Text(start, [internvl.chat(processor, q, a, dense=False)]) for q, a in [*QUESTIONS, QUESTIONS[0]]]
    data = TrainingSet("internvl", Squares.of([picture(32, 32)] * 4), texts, np.array([0, 0, 1, 1]), ["a", "b"])
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
