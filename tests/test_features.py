"""Kept image features: the same answers as without them, computed once for all models of one tower."""

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
