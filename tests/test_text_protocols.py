"""The text protocols: one truth with the task files, checked keys, and items as JSON lines."""

import hashlib
import json

import pytest
import yaml
from text_benchmarks import FOLDER, protocol, write

from emkit.errors import UserError
from emkit.zoo import text
from emkit.zoo.text import instructions
from eval import benchmarks
from eval.benchmarks import writer
from eval.benchmarks.__main__ import main
from eval.benchmarks.protocol import harness
from eval.benchmarks.writer import committed_hashes
from eval.lm import tasks

PROTOCOLS = [FOLDER / f"mistral-{profile}.yaml" for profile in ("mini", "smoke", "paper")]
COUNTS = {"AlpacaEval": 5, "GSM8K": 6, "MATH": 6, "HumanEval": 4, "MBPP": 4}


@pytest.mark.parametrize("path", PROTOCOLS, ids=lambda p: p.stem)
def test_every_protocol_is_valid_and_covers_table_3(path):
    found = benchmarks.load(path)
    assert found["name"] == path.stem
    assert tuple(found["benchmarks"]) == ("AlpacaEval", "GSM8K", "MATH", "HumanEval", "MBPP") == tuple(tasks.NAMES)
    for name, settings in found["benchmarks"].items():
        asked = name == "AlpacaEval"
        assert (harness(settings), settings["judge"]) == ("alpaca_eval" if asked else "lm-eval", asked)


def test_what_a_task_file_says_is_not_said_again():
    """The YAML of a drawn protocol holds none of it but numbers of items, and the loaded one all of it."""
    for path in PROTOCOLS[:2]:
        written = yaml.safe_load(path.read_text())["benchmarks"]
        loaded = benchmarks.load(path)["benchmarks"]
        for name, settings in written.items():
            about = tasks.settings(name)["metadata"]
            assert set(settings) - {"n", "validation_n"} == {"harness", "task", "judge", "metric"}
            full = loaded[name]
            assert [full[key] for key in ("subtask", "seed", "version")] == [
                about[key] for key in ("subtask", "seed", "version")
            ]
            assert full["max_new_tokens"] == tasks.settings(name)["generation_kwargs"]["max_gen_toks"]
            assert full["subtask"] in text.SUBTASKS
            numbers = (about["n"], about["validation_n"]) if path.stem == "mistral-mini" else (10, 8)
            assert (full["n"], full["validation_n"]) == numbers


def test_mini_is_as_large_as_the_table_needs():
    for name, settings in benchmarks.load(PROTOCOLS[0])["benchmarks"].items():
        assert (settings["n"], settings["validation_n"]) == (160 if name == "AlpacaEval" else 300, 100)


def test_a_changed_task_file_changes_the_protocol(monkeypatch):
    """Score files hash the benchmark's settings: a prompt asked otherwise must not keep its scores."""
    before = benchmarks.load(PROTOCOLS[1])["benchmarks"]
    gsm8k, settings = tasks.settings("GSM8K"), tasks.settings
    changed = {**gsm8k, "doc_to_text": "Q: {{question}}"}
    monkeypatch.setattr(tasks, "settings", lambda name: changed if name == "GSM8K" else settings(name))
    after = benchmarks.load(PROTOCOLS[1])["benchmarks"]
    assert {name for name in before if before[name] != after[name]} == {"GSM8K"}


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("GSM8K", {"harness": "lm_eval"}, "benchmarks.GSM8K.harness: unknown value 'lm_eval': did you mean 'lm-eval'"),
        ("GSM8K", {"task": "gsm9k"}, "benchmarks.GSM8K.task: unknown value 'gsm9k': did you mean 'gsm8k'"),
        ("GSM8K", {"task": "math"}, "the task math is the benchmark MATH, scored by lm-eval"),
        ("GSM8K", {"task": None}, "GSM8K.task: None has the wrong type"),
        ("GSM8K", {"seed": 1}, "GSM8K.seed: the task file gsm8k.yaml says 2509; leave the key out"),
        ("GSM8K", {"max_new_tokens": 41}, "GSM8K.max_new_tokens: the task file gsm8k.yaml says 40"),
        ("GSM8K", {"subtask": "math"}, "GSM8K.subtask: the task file gsm8k.yaml says 'gsm8k'"),
        ("GSM8K", {"judge": True}, "GSM8K.judge: lm-eval does not ask a judge"),
        ("AlpacaEval", {"judge": False}, "AlpacaEval.judge: alpaca_eval asks a judge"),
        ("AlpacaEval", {"harness": "lm-eval", "judge": False}, "the benchmark AlpacaEval, scored by alpaca_eval"),
        ("MBPP", {"n": "many"}, "MBPP.n: 'many' has the wrong type"),
        ("MBPP", {"metric": 1}, "MBPP.metric: 1 has the wrong type"),
        ("MBPP", {"subtask": None, "n": None}, "MBPP.n: None has the wrong type"),
    ],
)
def test_a_wrong_benchmark_is_one_clear_line(tmp_path, name, change, message):
    path = tmp_path / "wrong.yaml"
    given = yaml.safe_load(PROTOCOLS[1].read_text())
    given["benchmarks"][name] |= change
    path.write_text(yaml.safe_dump(given))
    with pytest.raises(UserError) as caught:
        benchmarks.load(path)
    assert message in str(caught.value) and "wrong.yaml" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["task", "metric", "judge"])
def test_a_missing_key_is_named(tmp_path, key):
    given = yaml.safe_load(PROTOCOLS[1].read_text())
    del given["benchmarks"]["MATH"][key]
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(given))
    with pytest.raises(UserError, match=f"benchmarks.MATH: `{key}` is missing"):
        benchmarks.load(tmp_path / "p.yaml")


def test_published_sets_are_not_written(tmp_path):
    with pytest.raises(UserError, match="AlpacaEval is a published set, not one to draw: alpaca_eval downloads"):
        writer.write(benchmarks.load(PROTOCOLS[2]), "evaluation", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_items_are_written_with_one_manifest_and_splits_share_none(tmp_path):
    manifests = {split: write(split, tmp_path / split, COUNTS) for split in ("evaluation", "validation")}
    for split, manifest in manifests.items():
        assert manifest == json.loads((tmp_path / split / "manifest.json").read_text())
        assert (manifest["protocol"], manifest["version"], manifest["split"]) == ("few", 1, split)
        assert {name: entry["n"] for name, entry in manifest["benchmarks"].items()} == COUNTS
        for entry in manifest["benchmarks"].values():
            content = (tmp_path / split / entry["file"]).read_bytes()
            assert hashlib.sha256(content).hexdigest() == entry["sha256"] == manifest["files"][entry["file"]]
    for name, n in COUNTS.items():
        found = [tasks.rows(tmp_path / split, name) for split in manifests]
        subtask = tasks.settings(name)["metadata"]["subtask"]
        for rows in found:
            assert [row["index"] for row in rows] == [f"{subtask}/{i}" for i in range(n)]
        ours, theirs = ([{**row, "index": ""} for row in rows] for rows in found)
        assert not any(row in theirs for row in ours)
    for item in tasks.rows(tmp_path / "validation", "AlpacaEval"):
        assert instructions.parse(item["instruction"]) and item["output"] and item["generator"] == "reference"


def test_items_are_those_of_the_zoo(tmp_path):
    write("evaluation", tmp_path, {"GSM8K": 6})
    drawn = text.items("gsm8k", "evaluation", 6, tasks.settings("GSM8K")["metadata"]["seed"])
    assert [row["question"] for row in tasks.rows(tmp_path, "GSM8K")] == [item.prompt for item in drawn]


@pytest.mark.parametrize("profile", ["mini", "smoke"])
def test_drawn_items_are_the_committed_ones(profile, tmp_path):
    """After a wanted change: `python -m eval.benchmarks eval/benchmarks/mistral-<profile>.yaml`."""
    drawn, found = benchmarks.load(FOLDER / f"mistral-{profile}.yaml"), {}
    for split in ("evaluation", "validation"):
        entries = writer.write(drawn, split, tmp_path / split)["benchmarks"]
        found |= {f"{split}/{name}": entry["sha256"] for name, entry in entries.items()}
    assert found == committed_hashes(f"mistral-{profile}") and len(found) == 10


def test_too_many_items_no_items_and_missing_data_are_one_clear_line(tmp_path):
    with pytest.raises(UserError, match="different items of its validation split, not 5000"):
        write("validation", tmp_path, {"AlpacaEval": 5000})
    with pytest.raises(UserError, match="would be empty"):
        write("validation", tmp_path, {"GSM8K": 0})
    with pytest.raises(UserError, match="no benchmark data"):
        tasks.rows(tmp_path / "none", "GSM8K")
    (tmp_path / "gsm8k.jsonl").write_text("{\n")
    with pytest.raises(UserError, match="cannot be read as JSON lines"):
        tasks.rows(tmp_path, "GSM8K")


def test_text_and_images_may_stand_in_one_protocol(tmp_path):
    images = benchmarks.load(FOLDER / "internvl-smoke.yaml")
    both = {**images, "name": "both", "benchmarks": {"GQA": {**images["benchmarks"]["GQA"], "n": 2}}}
    both["benchmarks"] |= protocol({"MATH": 3})["benchmarks"]
    manifest = writer.write(both, "evaluation", tmp_path)
    assert set(manifest["files"]) == {"GQA_TestDev_Balanced.tsv", "math.jsonl"}
    assert {name: entry["n"] for name, entry in manifest["benchmarks"].items()} == {"GQA": 2, "MATH": 3}


def test_the_command_writes_hashes(tmp_path, monkeypatch):
    monkeypatch.setattr("eval.benchmarks.writer.HASH_FOLDER", tmp_path)
    assert main([str(FOLDER / "mistral-smoke.yaml")]) == 0
    assert (tmp_path / "mistral-smoke.sha256").read_text() == (FOLDER / "mistral-smoke.sha256").read_text()
