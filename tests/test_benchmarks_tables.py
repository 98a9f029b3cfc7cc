"""The benchmark tables: the columns VLMEvalKit's classes read, hashes, splits, errors, and scores of known answers."""

import ast
import base64
import csv
import hashlib
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from text_benchmarks import full, said

from emkit.errors import UserError
from emkit.zoo import data
from eval import columns
from eval.columns import Protocol, load
from eval.items.__main__ import main
from eval.items.writer import committed_hashes, write

BACKBONES = ("internvl", "qwen2_vl")
PROFILES = ("mini", "smoke", "paper")
COLUMNS = (
    "VizWiz",
    "GQA",
    "MathVista",
    "MATH-Vision",
    "ChartQA",
    "TextVQA",
    "OCRVQA",
    "RefCOCO",
    "RefCOCO+",
    "RefCOCOg",
)


def read(path: Path) -> list[dict]:
    csv.field_size_limit(sys.maxsize)
    with open(path, encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream, delimiter="\t"))


@pytest.fixture(scope="module", params=BACKBONES)
def backbone(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def smoke(backbone) -> Protocol:
    return full("smoke", backbone)


@pytest.fixture(scope="module")
def written(smoke, tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("benchmarks")
    return folder, write(smoke, "evaluation", folder)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_protocol_is_valid_and_covers_table_1(backbone, profile):
    protocol = full(profile, backbone)
    assert protocol.name == f"{backbone}-{profile}" and tuple(protocol.columns) == COLUMNS


def test_mini_is_as_large_as_the_table_needs(backbone):
    for name, column in full("mini", backbone).columns.items():
        assert column.judge == (name in ("MathVista", "MATH-Vision"))
        assert (column.n, column.validation_n) == (400 if column.judge else 500, 100)


def test_the_profiles_differ_in_numbers_alone(backbone):
    mini, smoke, paper = (full(profile, backbone).columns for profile in PROFILES)
    for name in COLUMNS:
        for key in ("dataset", "dataset_class", "split", "judge", "metric", "suffix", "prompt_rule", "parts"):
            assert getattr(mini[name], key) == getattr(smoke[name], key) == getattr(paper[name], key), (name, key)


def test_tables_have_the_columns_their_classes_read(backbone, written):
    folder, manifest = written
    sizes = {"internvl": {(96, 96)}, "qwen2_vl": {(96, 96), (112, 96), (96, 112), (112, 112)}}[backbone]
    seen = set()
    expected = {
        "VizWiz.tsv": {"answers"},
        "GQA_TestDev_Balanced.tsv": {"answer"},
        "MathVista_MINI.tsv": {"answer", "question_type", "answer_type", "choices", "answer_option", "task", "skills"},
        "MathVision_MINI.tsv": {"answer", "choices", "category"},
        "ChartQA_TEST.tsv": {"answer", "split"},
        "TextVQA_VAL.tsv": {"answer"},
        "OCRVQA_TESTCORE.tsv": {"answer"},
        "RefCOCO.tsv": {"answer", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "width", "height", "split"},
    }
    assert set(manifest["files"]) == set(expected)
    for file, keys in expected.items():
        rows = read(folder / file)
        assert set(rows[0]) == keys | {"index", "image", "question"}
        assert [row["index"] for row in rows] == [str(i) for i in range(len(rows))]
        for row in rows:
            image = Image.open(io.BytesIO(base64.b64decode(row["image"], validate=True)))
            assert (image.mode, image.format) == ("RGB", "PNG")
            seen.add(image.size)
            assert row["question"] and "\n" not in row["question"]
            for name in {"answers", "choices", "skills"} & keys:
                assert isinstance(ast.literal_eval(row[name]), list)
    assert {row["split"] for row in read(folder / "ChartQA_TEST.tsv")} == {"human", "augmented"}
    assert seen == sizes


def drawn_items(backbone: str, column) -> list:
    return data.examples(column.subtask, "evaluation", column.n, column.seed, data.SIZES[backbone])


def test_an_item_is_one_image_of_the_split_with_one_of_its_own_short_questions(backbone, written, smoke):
    folder, _ = written
    for name, column in smoke.columns.items():
        rows = [
            r
            for r in read(folder / f"{column.dataset}.tsv")
            if r.get("split", "") == (column.split or r.get("split", ""))
        ]
        drawn = drawn_items(backbone, column)
        assert len(rows) == column.n
        for row, example in zip(rows, drawn, strict=True):
            pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(row["image"]))))
            assert np.array_equal(pixels, np.asarray(example.image)), name
            asked = [qa for qa in example.qas if qa.question == row["question"]]
            assert asked and not asked[0].kind.startswith("dense/")


def test_refcoco_boxes_are_pixels_of_the_image(written):
    folder, _ = written
    rows = read(folder / "RefCOCO.tsv")
    assert {row["split"] for row in rows} == {"RefCOCO_val", "RefCOCO+_val", "RefCOCOg_val"}
    for row in rows:
        corners = [float(row[f"bbox_{c}"]) for c in ("x1", "y1", "x2", "y2")]
        size = Image.open(io.BytesIO(base64.b64decode(row["image"]))).size
        assert (int(row["width"]), int(row["height"])) == size
        assert min(corners) >= 0 and max(corners[0::2]) <= size[0] and max(corners[1::2]) <= size[1]
        assert np.allclose(np.array(ast.literal_eval(row["answer"])) / 1000 * np.tile(size, 2), corners, atol=0.6)


def test_writing_again_gives_the_same_bytes_and_the_manifest_names_them(written, smoke, tmp_path):
    folder, manifest = written
    assert write(smoke, "evaluation", tmp_path) == manifest == json.loads((folder / "manifest.json").read_text())
    for file, digest in manifest["files"].items():
        assert (tmp_path / file).read_bytes() == (folder / file).read_bytes()
        assert hashlib.sha256((folder / file).read_bytes()).hexdigest() == digest
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*manifest["files"], "manifest.json"])


def test_the_content_hash_is_of_columns_and_pixels(written):
    folder, manifest = written
    digest = hashlib.sha256()
    for row in read(folder / "GQA_TestDev_Balanced.tsv"):
        pixels = Image.open(io.BytesIO(base64.b64decode(row["image"]))).tobytes()
        content = {"question": row["question"], "answer": row["answer"], "pixels": hashlib.sha256(pixels).hexdigest()}
        digest.update(json.dumps(content, sort_keys=True).encode())
    assert manifest["benchmarks"]["GQA"] == {"file": "GQA_TestDev_Balanced.tsv", "n": 10, "sha256": digest.hexdigest()}


@pytest.mark.parametrize("profile", ["mini", "smoke"])
def test_drawn_items_are_the_committed_ones(backbone, profile, tmp_path):
    """After a wanted change: `python -m eval.items <table> <profile>`."""
    protocol = full(profile, backbone)
    found = {}
    for split in ("evaluation", "validation"):
        entries = write(protocol, split, tmp_path / split)["benchmarks"]
        found |= {f"{split}/{name}": entry["sha256"] for name, entry in entries.items()}
    assert found == committed_hashes(f"{backbone}-{profile}")


def test_no_item_of_evaluation_is_in_validation(smoke, written, tmp_path):
    write(smoke, "validation", tmp_path)
    for file in written[1]["files"]:
        images = [{row["image"] for row in read(folder / file)} for folder in (tmp_path, written[0])]
        assert images[0].isdisjoint(images[1])


def test_a_difference_from_the_committed_items_is_said(smoke, tmp_path, capsys):
    other = smoke.model_copy(update={"columns": {"GQA": smoke.columns["GQA"].model_copy(update={"seed": 26})}})
    write(other, "validation", tmp_path)
    assert "the validation items of GQA differ from the committed ones" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.fixture
def gqa(tmp_path, monkeypatch):
    """GQA's file in a folder of its own, which a test may change."""
    path = tmp_path / "GQA.yaml"
    path.write_bytes((columns.FOLDER / "GQA.yaml").read_bytes())
    monkeypatch.setattr(columns, "FOLDER", tmp_path)
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"subtask": "docvqa"}, "GQA.yaml: subtask: unknown value 'docvqa': did you mean"),
        ({"n": "many"}, "GQA.yaml: n: 'many' is not a whole number"),
        ({"n": True}, "GQA.yaml: n: True is not a whole number"),
        ({"seed": None}, "drawn items need a seed"),
        ({"judge": "no"}, "GQA.yaml: judge: 'no' is neither true nor false"),
        ({"prompt_rule": "qwen"}, "GQA.yaml: prompt_rule: unknown value 'qwen': did you mean 'qwen2_vl'"),
        ({"dataset_class": "image_vqa.VizViz"}, "dataset_class: unknown value 'image_vqa.VizViz': did you mean"),
        ({"parts": "all"}, "GQA.yaml: parts: 'all' is not a list"),
    ],
)
def test_a_wrong_column_is_one_clear_line(gqa, change, message):
    gqa.write_text(yaml.safe_dump(yaml.safe_load(gqa.read_text()) | change))
    with pytest.raises(UserError, match=message) as caught:
        load("GQA", "internvl", "mini")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"judge_upstream": None}, "protocol.judge_upstream: None is not text"),
        ({"keep_image_features": "yes"}, "keep_image_features: 'yes' is neither true nor false"),
        ({"judge_modle": "gpt"}, "unknown key 'judge_modle': did you mean 'judge_model'"),
        ({"judge_model": 4}, "judge_model: 4 is not text"),
        ({"generation": {"dtype": "bfloat"}}, "generation.dtype: unknown value 'bfloat': did you mean 'bfloat16'"),
        ({"generation": {"decoding": "sampled"}}, "generation.decoding: unknown value 'sampled'"),
        ({"request_seconds": "long"}, "request_seconds: 'long' is not a number"),
        ({"image_size": "mixd"}, "image_size: 'mixd' is not a number of pixels, null or 'mixed'"),
        ({"request_seconds": 0}, "request_seconds: 0 is less than 1"),
        ({"every_column": {"nn": 3}}, "protocol.every_column: unknown key 'nn': did you mean 'n'"),
        ({"every_column": {"n": "three"}}, "protocol: .*VizWiz.yaml: n: 'three' is not a whole number"),
    ],
)
def test_a_wrong_protocol_is_one_clear_line(backbone, change, message):
    wrong = said("smoke", backbone) | change
    with pytest.raises(UserError, match=message) as caught:
        columns.protocol("smoke", backbone, COLUMNS, wrong, "wrong.yaml: protocol")
    assert "\n" not in str(caught.value) and "wrong.yaml" in str(caught.value)


def test_missing_columns_keys_splits_and_published_sets_are_refused(smoke, gqa, tmp_path):
    with pytest.raises(UserError, match="unknown benchmark 'GAQ': did you mean 'GQA'"):
        load("GAQ")
    with pytest.raises(UserError, match="unknown split 'test'"):
        write(smoke, "test", tmp_path)
    paper = smoke.columns["VizWiz"].model_copy(update={"subtask": None})
    with pytest.raises(UserError, match="VizWiz is a published set, not one to draw"):
        write(smoke.model_copy(update={"columns": {"VizWiz": paper}}), "evaluation", tmp_path / "paper")
    gqa.write_text("a: [1")
    with pytest.raises(UserError, match=r"GQA.yaml.*not valid YAML"):
        load("GQA")
    gqa.write_text("name\n")
    with pytest.raises(UserError, match=r"GQA.yaml: is not a mapping"):
        load("GQA")


def test_a_folder_that_cannot_be_written_is_said_and_nothing_is_left(smoke, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write(smoke, "evaluation", tmp_path / "file" / "out")


def test_the_command_prints_an_error_and_no_traceback(tmp_path, capsys):
    assert main([str(tmp_path / "none.yaml"), "smoke"]) == 2 and main([]) == 2
    assert capsys.readouterr().err.startswith("error: ")


# ------------------------------------------------------------------------------------ the harness's own verdict


@pytest.mark.parametrize("name", [n for n in COLUMNS if n not in ("MathVista", "MATH-Vision")])
def test_the_harness_asks_as_in_training_and_scores_right_answers_full(backbone, name, smoke, written):
    """Its prompt plus our suffix is `emkit.zoo.data.prompt`; gold answers score 100 and another item's do not."""
    from eval.vlm import client

    folder, _ = written
    column = smoke.columns[name]
    prompts = client.prompts(folder, column)
    right = {}
    for prompt, example in zip(prompts, drawn_items(backbone, column), strict=True):
        by_prompt = {data.prompt(example.subtask, qa, backbone): qa.answer for qa in example.qas}
        assert prompt.text + column.suffix in by_prompt
        right[prompt.index] = by_prompt[prompt.text + column.suffix]
    assert client.evaluate(folder, column, right).value == pytest.approx(100)
    assert client.evaluate(folder, column, dict.fromkeys(right, "lost")).value == pytest.approx(0)


@pytest.mark.parametrize("name", ["MathVista", "MATH-Vision"])
def test_the_mathematical_sets_reach_the_judge_and_score_right_answers_full(backbone, name, smoke, written, tmp_path):
    from eval import judge
    from eval.vlm import client

    folder, _ = written
    column = smoke.columns[name]
    prompts = client.prompts(folder, column)
    right = {}
    for prompt, example in zip(prompts, drawn_items(backbone, column), strict=True):
        by_prompt = {data.prompt(example.subtask, qa, backbone): qa.answer for qa in example.qas}
        right[prompt.index] = by_prompt[prompt.text]
    with judge.running(tmp_path / "cache", "rules") as url:
        assert client.evaluate(folder, column, right, judge_url=url).value == pytest.approx(100)
