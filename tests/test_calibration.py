"""Calibration samples: packs of the experts' own responses with their teacher's targets, cached by content."""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import open_task_vectors
from PIL import Image

from emkit import backbones, progress
from emkit.alignment import teacher as teaching
from emkit.alignment.calibration import calibrate
from emkit.alignment.sources import JsonlSource, Samples, ZooSource
from emkit.alignment.teacher import Recording
from emkit.errors import UserError
from emkit.zoo import data

internvl = backbones.get("internvl")

SETTINGS = Recording(samples=3, response_tokens=20, hidden_layer=1, max_new_tokens=4)


@pytest.fixture(scope="module")
def base_model(tiny_zoo):
    return internvl.load(tiny_zoo / "base")[0]


def made(tiny_zoo, base_model, cache, settings=SETTINGS, seed=0, given=None):
    vectors = open_task_vectors(tiny_zoo)
    return calibrate(internvl, base_model, vectors, given or ZooSource("train", "internvl"), settings, seed, cache)


@pytest.fixture(scope="module")
def calibration(tiny_zoo, base_model, tmp_path_factory):
    return made(tiny_zoo, base_model, tmp_path_factory.mktemp("cache"))


def test_every_sample_has_the_response_tokens_asked_and_no_image_more(calibration):
    for task in calibration.tasks.values():
        assert task.samples == 3
        for sample in range(3):
            tokens = [sum(row["tokens"] for row in rows) for rows, s in zip(task.rows, task.sample_of) if s == sample]
            assert sum(tokens) >= 20 > sum(tokens[:-1])
        losses_at = sum(int(sequence.count.sum()) for sequence in task.sequences)
        assert losses_at == task.response_tokens == sum(row["tokens"] for rows in task.rows for row in rows)


def test_sub_tasks_take_turns_and_questions_are_as_in_evaluation(calibration):
    turns = [rows[0]["subtask"] for rows in calibration.tasks["VQA"].rows]
    assert turns == [("vizwiz", "gqa")[i % 2] for i in range(len(turns))]
    assert {rows[0]["subtask"] for rows in calibration.tasks["Chart"].rows} == {"chartqa"}
    for rows in calibration.tasks["VQA"].rows:
        assert all(row["question"].endswith("single word or phrase.") for row in rows)


def test_no_item_of_another_split_is_used(calibration):
    keys = {rows[0]["key"] for task in calibration.tasks.values() for rows in task.rows}
    assert keys and all(int(key[:8], 16) % 10 <= 7 for key in keys)


def test_responses_and_targets_are_the_experts_own(calibration, tiny_zoo):
    """Against one question at a time: greedy generation, then the expert's logits and states on its own response."""
    task = calibration.tasks["VQA"]
    model, processor = internvl.load(tiny_zoo / "VQA")
    rows = task.rows[0]
    images = {
        data.example("vizwiz", "train", i, stream()).key: data.example("vizwiz", "train", i, stream()) for i in range(2)
    }
    image = images[rows[0]["key"]].image
    at = 0
    for row in rows:
        alone = internvl.generate(model, processor, [image], [row["question"]], 4)
        assert alone == [row["response"]]
        batch = internvl.encode(processor, [image], [row["question"]], alone)
        with torch.no_grad():
            out = internvl.forward(model, batch, hidden_layer=1)
        predicts = slice(-row["tokens"] - 1, -1)
        here = slice(at, at + row["tokens"])
        torch.testing.assert_close(task.logits(0)[here], out.logits[0, predicts], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(task.hidden[0][here], out.hidden[0, predicts], rtol=1e-4, atol=1e-4)
        at += row["tokens"]
    assert at == len(task.final[0])


def stream() -> int:
    return int(hashlib.sha256(b"calibration/0").hexdigest()[:8], 16)


def test_features_are_the_bases(calibration, base_model, tiny_zoo):
    """Nothing before the projector is merged, so the merged model sees the image as the base does."""
    task = calibration.tasks["VQA"]
    found = data.example("vizwiz", "train", 0, stream())
    _, processor = internvl.load(tiny_zoo / "base")
    pixels = internvl.encode(processor, [found.image], ["what?"], ["red"])["pixel_values"]
    torch.testing.assert_close(task.features[0], internvl.image_features(base_model, pixels))


def test_a_second_call_reads_the_cache_and_another_seed_draws_anew(tiny_zoo, base_model, tmp_path, monkeypatch):
    first = made(tiny_zoo, base_model, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(internvl, "generate", None)
        again = made(tiny_zoo, base_model, tmp_path)
    assert again.keys == first.keys
    for name, task in first.tasks.items():
        assert again.tasks[name].rows == task.rows
        assert all(torch.equal(a, b) for a, b in zip(task.final, again.tasks[name].final))
    other = made(tiny_zoo, base_model, tmp_path, seed=1)
    assert other.keys["VQA"] != first.keys["VQA"]
    assert {r[0]["key"] for r in other.tasks["VQA"].rows}.isdisjoint({r[0]["key"] for r in first.tasks["VQA"].rows})


def test_more_samples_are_added_to_those_kept_and_fewer_need_no_expert(tiny_zoo, base_model, tmp_path, monkeypatch):
    """What a sample is does not depend on how many there are, on the rounds before it, or on a kill in between."""
    monkeypatch.setattr(teaching, "ROUND", 3)
    settings = [replace(SETTINGS, samples=n) for n in (4, 2, 3)]
    whole, few = (made(tiny_zoo, base_model, tmp_path / "whole", given) for given in settings[:2])
    asked: list[list[str]] = []
    generate = internvl.generate

    def noting(*given, features):
        asked.append([f"{image.tobytes()} {question}" for image, question in zip(given[2], given[3], strict=True)])
        return generate(*given, features=features)

    monkeypatch.setattr(internvl, "generate", noting)
    made(tiny_zoo, base_model, tmp_path / "grown", settings[1])
    first, asked[:] = list(asked), []
    grown = made(tiny_zoo, base_model, tmp_path / "grown", settings[0])
    again = [round_ for round_ in asked if round_ in first]
    # of each task at most the round that the second sample ended in; there were more
    assert asked and len(again) <= len(whole.tasks) < len(first)
    monkeypatch.setattr(internvl, "generate", None)
    monkeypatch.setattr(internvl, "load", None)
    three = made(tiny_zoo, base_model, tmp_path / "grown", settings[2])
    assert len({str(c.keys) for c in (whole, few, three)}) == 3 and grown.keys == whole.keys
    for name, task in whole.tasks.items():
        for other, samples in ((grown, 4), (few, 2), (three, 3)):
            found = other.tasks[name]
            n = task.sample_of.index(samples) if samples < 4 else len(task.sample_of)
            assert found.samples == samples and found.sample_of == task.sample_of[:n] and found.rows == task.rows[:n]
            for part in ("final", "hidden", "features"):
                pairs = zip(getattr(found, part), getattr(task, part)[:n], strict=True)
                assert all(torch.equal(a, b) for a, b in pairs), (name, samples, part)


def test_a_task_that_another_process_is_at_comes_last_and_nothing_differs(
    calibration, tiny_zoo, base_model, tmp_path, monkeypatch
):
    """Two rows that need the same samples: each has another expert answer, and both end with the same set."""
    folders = {name: tmp_path / "calibration" / key.split(",")[0] for name, key in calibration.keys.items()}
    first, answered, said = next(iter(folders)), [], []
    code = "import sys; from emkit.locks import lock\nwith lock(sys.argv[1]): print(1, flush=True); input()"
    held = [sys.executable, "-c", code, str(folders[first].with_suffix(".lock"))]
    load = internvl.load
    monkeypatch.setattr(internvl, "load", lambda path, *more: answered.append(path.name) or load(path, *more))
    with subprocess.Popen(held, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        with progress.told(lambda what, done, total: (said.append(what), "waiting" in what and process.kill())):
            found = made(tiny_zoo, base_model, tmp_path)
    assert answered == [*list(folders)[1:], first]
    assert [text for text in said if "waiting" in text] == [
        f"waiting for another fit, which has the expert {first} answer its samples"
    ]
    assert list(found.tasks) == list(calibration.tasks) and found.keys == calibration.keys
    for name, task in calibration.tasks.items():
        assert found.tasks[name].rows == task.rows
        assert all(torch.equal(a, b) for a, b in zip(found.tasks[name].final, task.final, strict=True))


def test_a_damaged_sample_alone_is_made_again(tiny_zoo, base_model, tmp_path, capfd):
    first = made(tiny_zoo, base_model, tmp_path)
    key = first.keys["VQA"].split(",")[0]
    files = {path: path.read_bytes() for path in (tmp_path / "calibration" / key).glob("*/*")}
    assert len(files) == 3 * SETTINGS.samples  # with the hashes of the other two
    damaged = tmp_path / "calibration" / key / "0001" / "teacher.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:100])
    kept = {path: path.stat().st_mtime_ns for path in files if path.parent != damaged.parent}
    made(tiny_zoo, base_model, tmp_path)
    assert f"warning: {damaged.parent} is unreadable" in capfd.readouterr().err
    assert {path: path.read_bytes() for path in files} == files
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_another_chat_template_makes_another_set(tiny_zoo, base_model, tmp_path):
    """The same weights, asked in another way: what was kept does not hold."""
    zoo = shutil.copytree(tiny_zoo, tmp_path / "zoo")
    settings = Recording(samples=1, response_tokens=4, hidden_layer=1, max_new_tokens=3)
    made = []
    for _ in range(2):
        given, cache = ZooSource("train", "internvl"), tmp_path / "cache"
        made.append(calibrate(internvl, base_model, open_task_vectors(zoo), given, settings, 0, cache))
        template = zoo / "VQA" / "chat_template.jinja"
        template.write_text("is " + template.read_text())
    first, second = (calibration.keys for calibration in made)
    assert first["VQA"] != second["VQA"] and first["Chart"] == second["Chart"]
    rows = [made[i].tasks["VQA"].sequences[0].ids.tolist() for i in range(2)]
    assert rows[0] != rows[1]


def test_the_order_of_lines_does_not_depend_on_how_their_files_path_is_written(tmp_path, monkeypatch):
    for i in range(6):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
    lines = "".join(json.dumps({"image": f"{i}.png", "question": "what is this?"}) + "\n" for i in range(6))
    (tmp_path / "a.jsonl").write_text(lines)
    monkeypatch.chdir(tmp_path)
    orders = [
        [item.key for item in JsonlSource({"VQA": str(path)}).items("VQA", 3)]
        for path in (Path("a.jsonl"), tmp_path / "a.jsonl", Path("..") / tmp_path.name / "a.jsonl")
    ]
    assert orders[0] == orders[1] == orders[2]


def test_tokens_all_takes_every_position_of_every_row(tiny_zoo, base_model, tmp_path, calibration):
    settings = Recording(samples=3, response_tokens=20, hidden_layer=1, tokens="all", max_new_tokens=4)
    found = made(tiny_zoo, base_model, tmp_path, settings).tasks["VQA"]
    _, processor = internvl.load(tiny_zoo / "base")
    rows = found.rows[0]
    image = data.example("vizwiz", "train", 0, stream()).image
    batch = internvl.encode(
        processor, [image] * len(rows), [r["question"] for r in rows], [r["response"] for r in rows]
    )
    assert found.sequences[0].count.sum() == int(batch["attention_mask"].sum())
    assert len(found.final[0]) == len(found.sequences[0].ids)


@pytest.fixture
def jsonl(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    lines = [{"image": f"{i}.png", "question": f"how many circles are there? {i}"} for i in range(3)]
    for task in ("VQA", "Chart"):
        (tmp_path / f"{task}.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return {task: str(tmp_path / f"{task}.jsonl") for task in ("VQA", "Chart")}


def test_a_jsonl_source(jsonl, tiny_zoo, base_model, tmp_path):
    given = Samples(files=jsonl).drawn_from("internvl")
    settings = Recording(samples=2, response_tokens=1, hidden_layer=1, max_new_tokens=4)
    found = made(tiny_zoo, base_model, tmp_path / "cache", settings, given=given)
    assert found.tasks["VQA"].samples == 2 and found.tasks["VQA"].rows[0][0]["question"].startswith("how many")
    orders = {tuple(item.key for item in given.items("VQA", seed)) for seed in range(8)}
    assert len(orders) > 1 and {tuple(sorted(order)) for order in orders} == {tuple(sorted(next(iter(orders))))}
    with pytest.raises(UserError, match="task 'VQA' fills only 3 samples of 1 response tokens, 9 are wanted"):
        made(tiny_zoo, base_model, tmp_path / "cache", replace(settings, samples=9), given=given)
    with pytest.raises(UserError, match="task 'VQA' fills only 3 samples"):  # all of them kept now
        made(tiny_zoo, base_model, tmp_path / "cache", replace(settings, samples=9), given=given)
    few = made(tiny_zoo, base_model, tmp_path / "cache", replace(settings, samples=9, fewer=True), given=given)
    assert few.described["VQA"]["samples"] == 3 and few.tasks["VQA"].rows[:2] == found.tasks["VQA"].rows


@pytest.mark.parametrize(
    "content, match",
    [
        ("\n\n", "the calibration set of task 'VQA' is empty"),
        ("{", r"line 1: not of the form"),
        ('{"answer": "what?"}', r"line 1: not of the form"),
        ('{"image": "none.png", "question": "what?"}', r"line 1: there is no image"),
        ('\n{"image": "VQA.jsonl", "question": "what?"}', "VQA.jsonl is no readable image"),
    ],
)
def test_a_bad_calibration_file_is_one_line(jsonl, content, match):
    Path(jsonl["VQA"]).write_text(content)
    with pytest.raises(UserError, match=match) as error:
        given = JsonlSource(jsonl)
        given.identity("VQA")
        list(given.items("VQA", 0))
    assert "\n" not in str(error.value)


def test_an_unknown_task_is_one_line():
    with pytest.raises(UserError, match="knows no task 'Law'"):
        next(ZooSource("train", "internvl").items("Law", 0))
    with pytest.raises(UserError, match="no file for task 'Law'"):
        JsonlSource({}).identity("Law")
