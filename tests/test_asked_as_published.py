"""What a published protocol says of pictures and generation is what is done, whatever a model's folder says."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import own_models as own
import pytest
import text_benchmarks
import torch
from PIL import Image
from published import internvl_chat
from small_plan import write
from transformers import AutoTokenizer

from emkit import backbones, originals
from emkit.coefficients import Coefficients
from emkit.errors import UserError
from emkit.zoo.tokenizer import create_qwen2_vl_processor
from eval import columns, merging, models
from eval.__main__ import main as eval_main
from eval.lm import client as lm_client
from eval.places import Job
from eval.plan import Plan

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


# ---- whose tokenizer and template; the precision of a fit
def plan_of(home: Path, out: Path, **profile) -> Plan:
    """Two rows of two experts that have chat templates over a base that has none."""
    models = {"base": str(home / "base"), "experts": {name: str(home / name) for name in own.EXPERTS}}
    calibration = {"source": "jsonl", "samples": 2, "response_tokens": 4, "max_new_tokens": 4}
    calibration["files"] = {name: str(home / f"{name}.jsonl") for name in own.EXPERTS}
    fit = {"beta": dict.fromkeys(own.EXPERTS, 1.0), "initial": 0.5, "optimiser": {"lr": 0.05, "steps": 2}}
    said = {"name": "published", "backbone": "mistral", "calibration": calibration, "grid": [0.5], "seeds": [0]}
    said |= {"protocol": {"judge_upstream": "rules"}, "methods": {"expert_merging": fit}, **profile}
    said["models"] = models | profile.get("models", {})
    rows = [{"id": "base", "label": "Base", "method": "checkpoint", "model": "base"}]
    rows.append({"id": "em", "label": "Expert Merging", "method": "expert_merging"})
    out.mkdir()
    return Plan(*write(out, {"title": "T", "columns": ["MATH"], "rows": rows}, said), out / "results")


@pytest.fixture
def untemplated(tmp_path):
    home = own.write_models(tmp_path / "models", dtype=torch.float32)
    own.set_json(home / "base" / "tokenizer_config.json", chat_template=None)
    (home / "base" / "chat_template.jinja").unlink(missing_ok=True)
    assert AutoTokenizer.from_pretrained(home / "base").chat_template is None
    return home


def test_all_models_are_asked_with_the_tokenizer_that_the_profile_names(untemplated, tmp_path):
    plan, theirs = plan_of(untemplated, tmp_path / "run", models={"tokenizer": "math"}), {}
    for row in plan.rows:
        out = tmp_path / row / "model"
        merging.merge(plan, Job(row, 0), out, tmp_path / "cache")
        theirs[row] = AutoTokenizer.from_pretrained(out).chat_template
    assert set(theirs.values()) == {AutoTokenizer.from_pretrained(untemplated / "math").chat_template} != {None}
    assert set(plan.model_names("base")) == {"base", "math"}, "its score depends on whose template it is"


def test_an_owner_who_is_nobody_is_one_line(untemplated, tmp_path):
    with pytest.raises(UserError, match=r"models\.tokenizer: 'maths' is neither base nor an expert"):
        plan_of(untemplated, tmp_path / "run", models={"tokenizer": "maths"})


def test_a_fit_runs_in_the_precision_that_the_profile_says(untemplated, tmp_path):
    """bfloat16 with recomputed activations: other coefficients than in fp32, near them, and another recipe."""
    found, hashes = {}, set()
    for name, fits in (("full", {}), ("half", {"dtype": "bfloat16", "checkpointing": True, "micro_tokens": 8})):
        plan = plan_of(untemplated, tmp_path / name, models={"tokenizer": "math"}, fits=fits)
        out = tmp_path / name / "em" / "model"
        merging.merge(plan, Job("em", 0), out, tmp_path / name / "cache")
        values = Coefficients.load(out.parent / "coefficients.json").values
        found[name] = torch.cat([torch.as_tensor(values[key]).flatten() for key in sorted(values)])
        hashes.add(plan.expected(Job("em", 0), "MATH")["recipe_sha256"])
    assert not torch.equal(found["full"], found["half"]) and len(hashes) == 2
    torch.testing.assert_close(found["full"], found["half"], rtol=0, atol=0.05)


def test_samples_of_another_template_are_not_reused(untemplated, tmp_path):
    """In one cache: a fit with another owner's template is another fit, and the first one's is found again."""
    file = untemplated / "code" / "chat_template.jinja"
    template = AutoTokenizer.from_pretrained(untemplated / "code").chat_template
    file.write_text(template.replace("{{", "Please. {{", 1))
    found = []
    for number, owner in enumerate(("math", "code", "math")):
        plan = plan_of(untemplated, tmp_path / f"run{number}", models={"tokenizer": owner})
        merging.merge(plan, Job("em", 0), tmp_path / f"em{number}" / "model", tmp_path / "cache")
        found.append((tmp_path / f"em{number}" / "coefficients.json").read_text())
    assert found[0] == found[2] != found[1]


def test_a_merge_that_is_typed_fits_as_the_profile_says(untemplated, tmp_path, monkeypatch, capsys):
    """And with another precision where that is typed, which its hash then says."""
    plan = plan_of(untemplated, tmp_path / "run", models={"tokenizer": "math"}, fits={"dtype": "bfloat16"})
    found = {}
    for name, more in (("as said", []), ("typed", ["--dtype", "float32"])):
        out = tmp_path / name.replace(" ", "-") / "model"
        given = ["merge", str(plan.path), "em", "--profile", str(plan.profile_path), "--results", str(plan.home.parent)]
        assert eval_main([*given, "--out", str(out), *more]) == 0
        report = json.loads(capsys.readouterr().out)
        found[name] = (out.parent / "coefficients.json").read_text(), report["recipe_sha256"]
    assert found["as said"][0] != found["typed"][0] and found["as said"][1] != found["typed"][1]
    assert found["as said"][1] == merging.row_sha256(plan, "em")


def test_the_text_harness_does_not_obey_a_folders_penalties_either(tmp_path):
    folder = own.write_models(tmp_path / "models", dtype=torch.float32) / "base"
    asked = text_benchmarks.protocol({"GSM8K": 2}).columns["GSM8K"].model_copy(update={"max_new_tokens": 8})
    text_benchmarks.write("evaluation", tmp_path / "data", {"GSM8K": 2})
    said = []
    for changes in ({}, {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1}):
        own.set_json(folder / "generation_config.json", **changes)
        found = lm_client.evaluate(tmp_path / "data", [asked], folder)["GSM8K"]
        said.append([item["prediction"] for item in found.items])
    assert said[0] == said[1] and any(said[0])


def test_a_tokenizer_with_more_tokens_than_the_base_has_rows_is_one_line(untemplated, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(untemplated / "math")
    tokenizer.add_tokens([f"<more-{i}>" for i in range(2000)])
    tokenizer.save_pretrained(untemplated / "math")
    with pytest.raises(UserError, match=r"the tokenizer of math .* tokens more than the merged model has rows"):
        models.check(plan_of(untemplated, tmp_path / "run", models={"tokenizer": "math"}))
