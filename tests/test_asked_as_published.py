"""What a published protocol says of pictures and generation is what is done, whatever a model's folder says."""

from dataclasses import dataclass
from types import SimpleNamespace

import own_models as own
import pytest
import torch
from PIL import Image
from published import internvl_chat

from emkit import backbones, originals
from emkit.errors import UserError
from emkit.zoo.tokenizer import create_qwen2_vl_processor
from eval import columns, models

# width and height: tokens of VLMEvalKit's Qwen2-VL wrapper (256 · 28² to 1,280 · 28² pixels), tried with it
WRAPPER = {(200, 150): 266, (1224, 1632): 1230, (4000, 3000): 1230}
# as published: 4 · 28² to 16,384 · 28², which gave these before the column's bounds were read
STOCK = {(200, 150): 35, (1224, 1632): 2552, (4000, 3000): 15301}


@pytest.fixture(scope="module")
def stock():
    sizes = {"patch_size": 14, "merge_size": 2, "temporal_patch_size": 2, "pixels": [4 * 28 * 28, 16384 * 28 * 28]}
    return create_qwen2_vl_processor(sizes, [])


@pytest.mark.parametrize("size", WRAPPER)
def test_image_tokens_are_those_of_the_wrapper(size, stock):
    qwen2_vl = backbones.get("qwen2_vl")
    said = {"min_pixels": 256 * 28 * 28, "max_pixels": 1280 * 28 * 28, "subtask": None, "seed": None}
    column = columns.load("GQA", "qwen2_vl", "paper", said)
    for processor, expected in ((qwen2_vl.seeing(stock, **column.pictures), WRAPPER[size]), (stock, STOCK[size])):
        grid = processor.image_processor(Image.new("RGB", size), return_tensors="pt")["image_grid_thw"]
        assert int(grid.prod()) // 4 == expected


def test_a_column_says_how_many_tiles(tmp_path):
    internvl = backbones.get("internvl")
    processor = internvl.processor(originals.readable(internvl_chat(tmp_path / "model"), weights=False))
    picture, tiles = Image.new("RGB", (64, 48)), {}
    for name in ("GQA", "ChartQA"):
        column = columns.load(name, "internvl", "paper", {"max_tiles": 6, "subtask": None, "seed": None})
        batch = internvl.encode(internvl.seeing(processor, **column.pictures), [picture], ["Which?"])
        tiles[name] = len(batch["pixel_values"])
        assert int((batch["input_ids"] == processor.image_token_id).sum()) == 4 * tiles[name]
    assert tiles == {"GQA": 7, "ChartQA": 13}
    assert len(internvl.encode(processor, [picture], ["Which?"])["pixel_values"]) == 13  # it is as it was


def test_a_setting_that_nothing_reads_is_an_error():
    with pytest.raises(UserError, match="internvl has no setting 'max_pixels' of pictures: it has max_tiles"):
        backbones.get("internvl").seeing(None, max_pixels=1)

    @dataclass
    class Column:
        pictures: dict

    plan = SimpleNamespace(
        profile=SimpleNamespace(backbone="qwen2_vl"),
        protocol=SimpleNamespace(columns={"GQA": Column({"min_pixels": 1}), "ChartQA": Column({"max_tiles": 12})}),
    )
    with pytest.raises(UserError, match="ChartQA: nothing of qwen2_vl reads 'max_tiles'"):
        models.check(plan)


def test_a_folders_penalties_and_samplings_do_not_change_answers(tmp_path):
    """Five-fold repetition penalty, least length, sampling, beams: none of them is the harnesses'."""
    causal_lm, said = backbones.get("causal_lm"), []
    folder = own.write_models(tmp_path / "models", dtype=torch.float32) / "base"
    given = {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "min_new_tokens": 12, "num_beams": 3}
    for changes in ({}, {**given, "do_sample": True, "temperature": 2.0}):
        own.set_json(folder / "generation_config.json", **changes)
        said.append(causal_lm.generate(*causal_lm.load(folder), [None] * 2, ["Tell math number 1.", "Who?"], 12))
    assert said[0] == said[1]
