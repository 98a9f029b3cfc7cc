"""Answers kept as they come: who was killed asks for no batch twice, and ends with the answers of who was not."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from small_plan import ROOT
from text_benchmarks import column, write

from emkit import backbones
from emkit.errors import UserError
from emkit.zoo import build, families
from eval.journal import Journal
from eval.lm import client

mistral = families.get("mistral")


def keep(path, identity, values):
    """Ask for each of ``values``; returns what had to be made."""
    made = []
    with Journal(path, identity).opened() as journal:
        for value in values:
            assert journal.once([value], lambda value=value: made.append(value) or value.upper()) == value.upper()
    return made


def test_what_was_kept_is_not_made_again(tmp_path):
    path = tmp_path / "deep" / "kept.jsonl"
    assert keep(path, "one", "ab") == ["a", "b"]
    assert keep(path, "one", "abc") == ["c"]
    assert keep(path, "one", "abc") == []


def test_another_identity_begins_anew(tmp_path):
    path = tmp_path / "kept.jsonl"
    keep(path, "one", "ab")
    assert keep(path, "another", "ab") == ["a", "b"]
    assert keep(path, "one", "a") == ["a"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace('"B"', '"b"'),  # another answer under the same hash
        lambda text: text[:-3],  # a write that was cut off
        lambda text: text.splitlines(keepends=True)[0] + "\0" * 50,  # a block that a power cut left empty
        lambda text: text.splitlines(keepends=True)[0] + "[]\n",
    ],
)
def test_what_is_damaged_is_made_again_and_what_stands_before_it_is_not(tmp_path, damage):
    path = tmp_path / "kept.jsonl"
    keep(path, "one", "ab")
    path.write_text(damage(path.read_text()))
    assert keep(path, "one", "ab") == ["b"]
    assert keep(path, "one", "ab") == []
    assert len(path.read_text().splitlines()) == 2


def test_a_second_writer_leaves_the_first_ones_file_alone(tmp_path):
    path = tmp_path / "kept.jsonl"
    with Journal(path, "one").opened() as first:
        first.once(["a"], lambda: "A")
        assert keep(path, "one", "ab") == ["b"]
        first.once(["b"], lambda: "B")
    assert [json.loads(line)["value"] for line in path.read_text().splitlines()] == ["A", "B"]


def test_what_another_writer_has_kept_is_read(tmp_path):
    path = tmp_path / "kept.jsonl"
    with Journal(path, "one").opened() as first:
        first.once(["a"], lambda: "A")
        assert keep(path, "one", "ab") == ["b"]
    assert keep(path, "one", "ab") == ["b"]


def test_an_error_while_something_is_made_is_its_own_and_keeps_nothing(tmp_path):
    path = tmp_path / "kept.jsonl"
    with pytest.raises(FileNotFoundError, match="picture"), Journal(path, "one").opened() as journal:
        journal.once(["a"], Path("/nowhere/picture.png").read_bytes)
    assert path.read_text() == ""


def test_a_file_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"), Journal(tmp_path / "file" / "kept.jsonl", "one").opened():
        pass


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    recipe, folder = build.load_recipe("mistral-smoke"), tmp_path_factory.mktemp("model")
    tokenizer = mistral.processor(recipe)
    mistral.create(recipe, tokenizer, 5).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


QUESTIONS = [f"Add {i} and {10**i}." for i in range(7)]


def test_a_backbone_goes_on_at_the_batch_in_which_it_was_killed(tmp_path, model):
    backbone = backbones.get("mistral")
    loaded, tokenizer = backbone.load(model, torch.float32)
    generate, asked = loaded.generate, []

    def answers(dies_at):
        def counted(**given):
            if len(asked) == dies_at:
                raise KeyboardInterrupt
            asked.append(len(given["input_ids"]))
            return generate(**given)

        loaded.generate = counted
        with Journal(tmp_path / "kept.jsonl", "one").opened() as journal:
            kept = {"answered": lambda items, make: journal.once([QUESTIONS[i] for i in items], make)}
            return backbone.generate(loaded, tokenizer, [None] * 7, QUESTIONS, 5, batch_size=2, **kept)

    with pytest.raises(KeyboardInterrupt):
        answers(dies_at=2)
    found = answers(dies_at=None)
    assert asked == [2, 2, 2, 1]
    assert found == backbone.generate(loaded, tokenizer, [None] * 7, QUESTIONS, 5, batch_size=2)


def test_a_killed_worker_of_the_harness_goes_on_at_its_next_batch(tmp_path, model):
    data, path = tmp_path / "data", tmp_path / "kept.jsonl"
    write("validation", data, dict.fromkeys(("AlpacaEval", "GSM8K", "MATH", "HumanEval", "MBPP"), 8))
    asked = column("GSM8K")
    whole = client.evaluate(data, [asked], model, batch=2)["GSM8K"]
    worker = int(client._service(data).socket_path.with_suffix(".alive").read_text())
    killed = []

    def kill():
        while not (path.is_file() and path.read_bytes().count(b"\n") >= 2):
            time.sleep(0.002)
        os.killpg(worker, signal.SIGKILL)
        killed.append(path.read_bytes())

    threading.Thread(target=kill, daemon=True).start()
    found = client.evaluate(data, [asked], model, batch=2, journal=Journal(Path(path), "one"))["GSM8K"]
    client._service(data).socket_path.unlink(missing_ok=True)
    assert (found.value, found.items) == (whole.value, whole.items)
    lines = path.read_bytes()
    assert killed and 2 <= killed[0].count(b"\n") < 4, "the worker was killed too late to show anything"
    assert lines.startswith(killed[0][: killed[0].rfind(b"\n") + 1]) and lines.count(b"\n") == 4


ASKING = """
import sys
from pathlib import Path
from text_benchmarks import column
from eval.journal import Journal
from eval.lm import client
data, model, path = map(Path, sys.argv[1:])
client.evaluate(data, [column("GSM8K")], model, batch=1, journal=Journal(path, "one"))
"""


def test_a_worker_ends_with_the_only_one_who_asks_it(tmp_path, model):
    """A job that was killed leaves no process that goes on answering, with the model in a device's memory."""
    data, path = tmp_path / "data", tmp_path / "kept.jsonl"
    write("validation", data, dict.fromkeys(("AlpacaEval", "GSM8K", "MATH", "HumanEval", "MBPP"), 60))
    known = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    asking = subprocess.Popen([sys.executable, "-c", ASKING, data, model, path], env=known, cwd=ROOT)
    try:
        until(lambda: path.is_file() and path.read_bytes().count(b"\n") >= 2, 120)
    finally:
        asking.kill()
        asking.wait()
    worker = int(client._service(data).socket_path.with_suffix(".alive").read_text())
    until(lambda: not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE, 20)
    assert 2 <= path.read_bytes().count(b"\n") < 60, "it had answered everything: nothing is shown"


def until(holds, seconds):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)
