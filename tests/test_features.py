"""Kept image features and encoded questions: the same answers as without them, made once for all models that see and
read alike."""

import pytest
import torch

from emkit import backbones
from emkit.zoo.data import examples, prompt
from eval import features

internvl = backbones.get("internvl")


@pytest.fixture
def items():
    drawn = examples("gqa", "validation", 6, seed=4)
    return [e.image for e in drawn], [prompt("gqa", e.qas[0]) for e in drawn]


@pytest.fixture
def model(tiny_zoo):
    return internvl.load(tiny_zoo / "base")


def counted(monkeypatch) -> list[int]:
    calls, tower = [], internvl.image_features
    monkeypatch.setattr(internvl, "image_features", lambda m, pixels: calls.append(len(pixels)) or tower(m, pixels))
    return calls


def test_they_are_the_towers_output_item_by_item(model, items, tmp_path):
    kept = features.kept(tmp_path, {}, internvl, *model, items[0])
    for i, image in enumerate(items[0]):
        pixels = internvl.encode(model[1], [image], [""])["pixel_values"]
        assert len(pixels) > 1, "the small zoo cuts images into tiles, so that their count is tested too"
        torch.testing.assert_close(kept(i, i + 1), internvl.image_features(model[0], pixels))
    assert torch.equal(kept(0, 6), torch.cat([kept(0, 2), kept(2, 6)]))


def test_answers_are_those_of_generating_without(model, items, tmp_path):
    kept = features.kept(tmp_path, {}, internvl, *model, items[0])
    with_features = internvl.generate(*model, *items, 8, features=kept)
    assert with_features == internvl.generate(*model, *items, 8)


def test_a_model_in_bfloat16_has_features_and_answers(tiny_zoo, items, tmp_path):
    model = internvl.load(tiny_zoo / "base", dtype=torch.bfloat16)
    kept = features.kept(tmp_path, {}, internvl, *model, items[0])
    assert kept(0, 6).dtype == torch.bfloat16
    assert len(internvl.generate(*model, *items, 4, features=kept)) == len(internvl.generate(*model, *items, 4)) == 6


def test_a_second_model_with_the_same_tower_computes_nothing(model, items, tmp_path, monkeypatch):
    calls = counted(monkeypatch)
    first = features.kept(tmp_path, {}, internvl, *model, items[0])(0, 6)
    assert calls
    calls.clear()
    with torch.no_grad():
        model[0].lm_head.weight += 1  # not the tower
    again = features.kept(tmp_path, {}, internvl, *model, items[0])(0, 6)
    assert not calls and torch.equal(first, again)


@pytest.mark.parametrize("change", ["tower", "items", "damage"])
def test_they_are_made_again_when_anything_changed(model, items, tmp_path, monkeypatch, capfd, change):
    features.kept(tmp_path, {"items": "a"}, internvl, *model, items[0])
    calls = counted(monkeypatch)
    if change == "tower":
        with torch.no_grad():
            next(model[0].model.vision_tower.parameters()).add_(0.1)
    if change == "damage":
        file = next(tmp_path.glob("*.safetensors"))
        file.write_bytes(file.read_bytes()[:100])
    found = features.kept(tmp_path, {"items": "b" if change == "items" else "a"}, internvl, *model, items[0])
    pixels = internvl.encode(model[1], items[0], [""] * 6)["pixel_values"]
    assert sum(calls) == len(pixels)
    assert ("is unreadable" in capfd.readouterr().err) == (change == "damage")
    torch.testing.assert_close(found(0, 6), internvl.image_features(model[0], pixels))


# ---- encoded questions
class Unseen:
    """Pictures that nobody may look at."""

    def __len__(self):
        return 6

    def __getitem__(self, at):
        raise AssertionError(f"picture {at} was looked at")


@pytest.fixture(params=["internvl", "qwen2_vl"])
def seen(request, tiny_zoo, items):
    """A backbone, a model of it with its processor, and pictures with questions."""
    if request.param == "internvl":
        return internvl, *internvl.load(tiny_zoo / "base"), *items
    backbone = backbones.get("qwen2_vl")
    drawn = examples("gqa", "validation", 6, seed=4, size="mixed")
    pictures, asked = [e.image for e in drawn], [prompt("gqa", e.qas[0], "qwen2_vl") for e in drawn]
    return backbone, *backbone.load("results/zoo/qwen2_vl/base"), pictures, asked


def asked_of(seen, folder, pictures=None, identity=None, questions=None):
    backbone, model, processor, images, texts = seen
    texts = questions or texts
    images = images if pictures is None else pictures
    known = {
        "features": features.kept(folder, identity or {}, backbone, model, processor, images),
        "encoded": features.encodings(folder / "encoded", identity or {}, processor, texts),
    }
    return backbone.generate(model, processor, images, texts, 8, batch_size=4, **known)


def test_answers_from_encoded_questions_are_those_without_and_look_at_no_picture(seen, tmp_path):
    backbone, model, processor, images, questions = seen
    plain = backbone.generate(model, processor, images, questions, 8, batch_size=4)
    assert asked_of(seen, tmp_path) == plain, "made now"
    assert len(list((tmp_path / "encoded").glob("*.safetensors"))) == 2, "a file a batch"
    assert asked_of(seen, tmp_path, Unseen()) == plain, "as kept"


def test_what_a_tokenizer_was_last_asked_does_not_matter(seen, tmp_path):
    """Its own text changes with the padding of its last call: the first column of a process would be encoded anew."""
    backbone, _, processor, images, questions = seen
    made = []
    for _ in range(2):
        encoded = features.encodings(tmp_path, {}, processor, questions)
        encoded([0, 1], lambda: made.append(1) or backbone.encode(processor, images[:2], questions[:2]))
        processor.tokenizer(["a", "b c d"], padding=True, truncation=True, max_length=3, return_tensors="pt")
    assert made == [1]


def test_an_encoded_batch_is_the_processors_own_without_pixels(seen, tmp_path):
    backbone, _, processor, images, questions = seen
    encoded = features.encodings(tmp_path, {}, processor, questions)
    own = backbone.encode(processor, images[:3], questions[:3])
    for _ in range(2):
        found = encoded([0, 1, 2], lambda: backbone.encode(processor, images[:3], questions[:3]))
        assert set(found) == set(own) - {"pixel_values"}
        assert all(torch.equal(found[name], own[name]) and found[name].dtype == own[name].dtype for name in found)


@pytest.mark.parametrize("change", ["items", "questions", "template", "damage"])
def test_questions_are_encoded_again_when_anything_changed(seen, tmp_path, change):
    processor, questions = seen[2], [*seen[4]]
    asked_of(seen, tmp_path, identity={"items": "a"})
    if change == "questions":
        questions[0] += "?"
    if change == "template":
        processor.chat_template = processor.chat_template + " "
    if change == "damage":
        for file in (tmp_path / "encoded").glob("*.safetensors"):
            file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(AssertionError, match="was looked at"):
        asked_of(seen, tmp_path, Unseen(), {"items": "b" if change == "items" else "a"}, questions)
