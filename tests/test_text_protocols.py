"""The text columns: their files, what a profile says of them, checked keys, and items as JSON lines."""

import hashlib
import json

import pytest
import yaml
from text_benchmarks import TEXT, column, full, protocol, write

from emkit.errors import UserError
from emkit.zoo import text
from emkit.zoo.text import instructions
from eval import columns
from eval.items import lines, writer
from eval.items.__main__ import main
from eval.items.writer import committed_hashes

PROFILES = ("mini", "smoke", "paper")
COUNTS = {"AlpacaEval": 5, "GSM8K": 6, "MATH": 6, "HumanEval": 4, "MBPP": 4}


@pytest.mark.parametrize("profile", PROFILES)
def test_every_protocol_is_valid_and_covers_table_3(profile):
    found = full(profile, "mistral")
    assert found.name == f"mistral-{profile}" and tuple(found.columns) == TEXT
    for name, asked in found.columns.items():
        judged = name == "AlpacaEval"
        assert (asked.harness, asked.judge) == ("alpaca_eval" if judged else "lm-eval", judged)


def test_the_profiles_differ_in_numbers_alone():
    mini, smoke, paper = (full(profile, "mistral").columns for profile in PROFILES)
    for name in TEXT:
        assert smoke[name].model_copy(update={"n": mini[name].n, "validation_n": 100}) == mini[name]
        assert (smoke[name].n, smoke[name].validation_n) == (10, 8)
        assert mini[name].subtask in text.SUBTASKS and paper[name].published
        for key in ("harness", "judge", "metric", "group"):
            assert getattr(mini[name], key) == getattr(paper[name], key)


def test_mini_is_as_large_as_the_table_needs():
    for name, asked in full("mini", "mistral").columns.items():
        assert (asked.n, asked.validation_n) == (160 if name == "AlpacaEval" else 300, 100)


def test_a_changed_task_changes_what_a_score_depends_on_and_words_do_not():
    """Score files hash what is asked: a prompt asked otherwise must not keep its scores."""
    before = column("GSM8K")
    task = {**before.task, "doc_to_text": "Q: {{question}}"}
    assert before.model_copy(update={"task": task}).asked() != before.asked()
    assert before.model_copy(update={"metric": "in other words", "group": "Sums"}).asked() == before.asked()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the columns' folder, which a test may change."""
    for path in columns.FOLDER.glob("*.yaml"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(columns, "FOLDER", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("GSM8K", {"harness": "lm_eval"}, "GSM8K.yaml: harness: unknown value 'lm_eval': did you mean 'lm-eval'"),
        ("GSM8K", {"task": None}, "GSM8K.yaml: task: None"),
        ("GSM8K", {"seed": None}, "drawn items need a seed"),
        ("GSM8K", {"seed": "one"}, "GSM8K.yaml: seed: 'one' is not a whole number"),
        ("GSM8K", {"items": "mine.jsonl"}, "items are drawn from a subtask or given in a file, not both"),
        ("GSM8K", {"max_new_tokens": 0}, "GSM8K.yaml: max_new_tokens: 0 is less than 1"),
        ("GSM8K", {"subtask": "mth"}, "GSM8K.yaml: subtask: unknown value 'mth': did you mean 'math'"),
        ("GSM8K", {"judge": True}, "GSM8K.yaml: judge: lm-evaluation-harness does not ask a judge"),
        ("AlpacaEval", {"judge": False}, "AlpacaEval.yaml: judge: alpaca_eval asks a judge"),
        ("AlpacaEval", {"harness": "lm-eval", "judge": False}, "the key 'task' is missing"),
        ("MBPP", {"n": "many"}, "MBPP.yaml: n: 'many' is not a whole number"),
        ("MBPP", {"metric": 1}, "MBPP.yaml: metric: 1 is not text"),
        ("MBPP", {"subtask": None, "n": None}, "MBPP.yaml: n: None is not a whole number"),
        ("MBPP", {"suffix": "?"}, "MBPP.yaml: unknown key 'suffix'"),
        ("MBPP", {"profiles": ["mini"]}, "MBPP.yaml: profiles: is not a mapping of settings by name"),
    ],
)
def test_a_wrong_column_is_one_clear_line(folder, name, change, message):
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | change))
    with pytest.raises(UserError) as caught:
        columns.load(name, "mistral", "mini")
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["task", "metric", "group", "version"])
def test_a_missing_key_is_named(folder, key):
    path = folder / "MATH.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in yaml.safe_load(path.read_text()).items() if k != key}))
    with pytest.raises(UserError, match=f"MATH.yaml: the key '{key}' is missing"):
        columns.load("MATH", "mistral", "mini")


def test_what_is_said_nearer_wins(folder):
    """A column's own keys, then the profile's for all columns, the backbone's, the profile's, the backbone's in it."""
    said = yaml.safe_load((folder / "GSM8K.yaml").read_text())
    layers = {"backbones": {"b": {"n": 3}}, "profiles": {"p": {"n": 4, "backbones": {"c": {"n": 5}}}}}
    (folder / "GSM8K.yaml").write_text(yaml.safe_dump(said | {"n": 1} | layers))
    asked = [("", "", {}), ("", "", {"n": 2}), ("b", "", {"n": 2}), ("b", "p", {"n": 2}), ("c", "p", {"n": 2})]
    assert [columns.load("GSM8K", b, p, every).n for b, p, every in asked] == [1, 2, 3, 4, 5]
    assert columns.load("GSM8K", every={"max_tiles": 6}) == columns.load("GSM8K"), "what it has not is not said of it"


def test_published_sets_are_not_written(tmp_path):
    with pytest.raises(UserError, match="AlpacaEval is a published set, not one to draw"):
        writer.write(full("paper", "mistral"), "evaluation", tmp_path / "out")
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
        found = [lines.rows(tmp_path / split, column(name)) for split in manifests]
        subtask = column(name).subtask
        for rows in found:
            assert [row["index"] for row in rows] == [f"{subtask}/{i}" for i in range(n)]
        ours, theirs = ([{**row, "index": ""} for row in rows] for rows in found)
        assert not any(row in theirs for row in ours)
    for item in lines.rows(tmp_path / "validation", column("AlpacaEval")):
        assert instructions.parse(item["instruction"]) and item["output"] and item["generator"] == "reference"


def test_items_are_those_of_the_zoo(tmp_path):
    write("evaluation", tmp_path, {"GSM8K": 6})
    drawn = text.items("gsm8k", "evaluation", 6, column("GSM8K").seed)
    assert [row["question"] for row in lines.rows(tmp_path, column("GSM8K"))] == [item.prompt for item in drawn]


@pytest.mark.parametrize("profile", ["mini", "smoke"])
def test_drawn_items_are_the_committed_ones(profile, tmp_path):
    """After a wanted change: `python -m eval.items table3 <profile>`."""
    drawn, found = full(profile, "mistral"), {}
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
        lines.rows(tmp_path / "none", column("GSM8K"))
    (tmp_path / "gsm8k.jsonl").write_text("{\n")
    with pytest.raises(UserError, match="cannot be read as JSON lines"):
        lines.rows(tmp_path, column("GSM8K"))


def test_text_and_images_may_stand_in_one_protocol(tmp_path):
    images = full("smoke", "internvl")
    both = {"GQA": images.columns["GQA"].model_copy(update={"n": 2})} | protocol({"MATH": 3}).columns
    manifest = writer.write(images.model_copy(update={"name": "both", "columns": both}), "evaluation", tmp_path)
    assert set(manifest["files"]) == {"GQA_TestDev_Balanced.tsv", "math.jsonl"}
    assert {name: entry["n"] for name, entry in manifest["benchmarks"].items()} == {"GQA": 2, "MATH": 3}


def test_the_command_writes_hashes(tmp_path, monkeypatch):
    committed = (writer.HASH_FOLDER / "mistral-smoke.sha256").read_text()
    monkeypatch.setattr(writer, "HASH_FOLDER", tmp_path)
    assert main(["table3", "smoke"]) == 0
    assert (tmp_path / "mistral-smoke.sha256").read_text() == committed
