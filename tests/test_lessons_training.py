"""The notebook on one's own experts: its data, its training loop, its commands, and the solutions of its exercises."""

from __future__ import annotations

import json
import math
import re

import lesson_notebook
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from transformers import AutoModelForCausalLM, AutoTokenizer

import emkit
from emkit.errors import UserError
from eval import table
from eval.lessons import commands, training

NOTEBOOK, BASE = "05-your-own-experts", "results/zoo/mistral/base"
MATRIX = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Two experts of a few steps."""
    return training.prepare(tmp_path_factory.mktemp("own"), BASE, "", "", "", steps=3, seed=0)


@pytest.mark.parametrize("skill", list(training.PHRASINGS))
def test_every_fact_is_trained_and_its_test_question_is_not(skill):
    train, test = training.examples(skill)
    assert not {line["prompt"] for line in train} & {line["prompt"] for line in test}
    assert len(train) == 4 * len(test)
    assert {line["answer"] for line in test} == {line["answer"] for line in train}


def test_answers_are_right():
    words = {line["prompt"]: line["answer"] for part in training.examples("numbers") for line in part}
    asked = {"Write seven in digits.": "7", "Which number is twenty one?": "21", "In digits: thirty nine": "39"}
    assert {prompt: words[prompt] for prompt in asked} == asked
    opposite = {line["prompt"]: line["answer"] for part in training.examples("opposites") for line in part}
    assert opposite["Name the opposite of hot."] == "cold" and opposite["Name the opposite of cold."] == "hot"


def test_the_loss_is_that_of_the_answer_alone():
    """Against transformers' own loss, which takes the same labels."""
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    lines = training.examples("numbers")[0][:3]
    ids, mask, labels = training.batch_of(tokenizer, lines)
    answers = [tokenizer.decode(row[row >= 0]) for row in labels]
    assert answers == [line["answer"] + tokenizer.eos_token for line in lines]
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        theirs = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    kept = labels[:, 1:] >= 0
    ours = -logits.log_softmax(-1)[kept].gather(1, labels[:, 1:][kept][:, None]).mean()
    assert float(ours) == pytest.approx(float(theirs), rel=1e-4)


def test_training_moves_the_blocks_matrices_alone(own):
    """And an adapter is read as what peft makes of it."""
    opened = emkit.Experts(own.base, own.experts)
    base = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).state_dict()
    full = AutoModelForCausalLM.from_pretrained(own.experts["opposites"], dtype=torch.float32).state_dict()
    moved = {name for name in base if not torch.equal(base[name], full[name])}
    assert moved == set(opened.vectors.names)
    from peft import PeftModel

    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)
    merged = PeftModel.from_pretrained(model, own.experts["numbers"]).merge_and_unload().state_dict()
    torch.testing.assert_close(opened.tau(MATRIX)[1], merged[MATRIX] - base[MATRIX], atol=1e-5, rtol=1e-3)
    assert all(math.isfinite(loss) for losses in own.losses.values() for loss in losses)


def test_training_lowers_the_loss(tmp_path):
    lines = training.examples("numbers")[0][:8]
    losses = training.fine_tune(BASE, tmp_path / "few", lines, steps=12, batch=8)
    assert losses[-1] < losses[0] / 2


def test_own_folders_are_taken_and_nothing_is_trained(own, tmp_path):
    test = training.write([{"prompt": "a", "answer": "b"}], tmp_path / "test.jsonl")
    said = ", ".join(f"{name}={folder}" for name, folder in own.experts.items())
    found = training.prepare(tmp_path, BASE, said, f"opposites={test}", f"opposites={test}", 3, 0)
    assert found.experts == own.experts and found.losses == {} and not (tmp_path / "opposites").exists()
    assert found.tests == {"opposites": [{"prompt": "a", "answer": "b"}]}


@pytest.mark.parametrize(
    ("experts", "prompts", "tests", "said"),
    [
        ("math", "", "", "no prompts"),
        ("math=there", "math=a.jsonl", "", "no tests"),
        ("math", "math=a.jsonl", "math=b.jsonl", "'math' is not of the form name=folder"),
        ("math=there", "math=a.jsonl", "math=missing.jsonl", "missing.jsonl is no JSONL"),
    ],
)
def test_bad_parameters_get_one_line(tmp_path, experts, prompts, tests, said):
    with pytest.raises(UserError, match=re.escape(said)) as error:
        training.prepare(tmp_path, BASE, experts, prompts, tests, 1, 0)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("another tokenizer", "error: expert 'x' does not fit the base: mismatched vocabularies"),
        ("another chat template", "warning: the chat templates of x and base differ"),
        ("no embeddings", "everything fits"),
        ("a matrix is missing", "it lacks 'model.layers.1.mlp.up_proj.weight'"),
    ],
)
def test_what_goes_wrong_is_said(own, tmp_path, capsys, how, said):
    broken = commands.damaged(own.experts["opposites"], tmp_path / "broken", how)
    flags = ["--method", "ties", "--out", str(tmp_path / "out"), "--dry-run"]
    commands.emkit("merge", *commands.models(BASE, {"x": broken}), *flags)
    out = capsys.readouterr().out
    assert said in out and out.startswith("$ emkit merge --base") and "\ndisk " not in out


def test_init_merge_and_card(own, tmp_path, capsys):
    recipe, out = tmp_path / "merge.yaml", tmp_path / "merged"
    commands.emkit("init", recipe, "--method", "task_arithmetic", *commands.models(own.base, own.experts))
    assert "method: task_arithmetic" in commands.head(recipe, 30)
    commands.emkit("merge", recipe, "--out", out)
    assert "38 tensors are there and finite" in capsys.readouterr().out
    assert commands.card(out).startswith("### Task Arithmetic") and "## Options" not in commands.card(out)
    assert "`model.safetensors`" in commands.listing({"merged": out})


def test_verdict_names_the_best_merges():
    results = pd.DataFrame(
        {"a": [0, 90, 0, 60, 40], "b": [0, 0, 80, 10, 35]}, index=["base", "a", "b", "first", "second"]
    )
    said = training.verdict(results.assign(mean=results.mean(axis=1)), {"a": 50, "b": 25})
    assert "Best mean of the merges: **second**, 38 %" in said and "**second**, 35 %" in said
    assert "2.0 points in a, 4.0 points in b" in said
    assert isinstance(training.bars(results), Figure) and isinstance(training.curves({"a": [2.0, 1.0]}), Figure)


def test_the_example_of_a_table_is_one(tmp_path):
    text = "\n".join(cell.source for cell in lesson_notebook.read(NOTEBOOK).cells)
    file = tmp_path / "mine.yaml"
    file.write_text(re.search(r"```yaml\n(# mine.yaml.*?)```", text, re.DOTALL)[1], encoding="utf-8")
    assert [row.id for row in table.load(file).rows] == ["base", "ta_0.3", "ta_0.5", "ta_1.0", "em"]


def test_solutions(own, capsys):
    names = {"own": own, "opened": emkit.Experts(own.base, own.experts), "training": training}
    said = []
    for code in lesson_notebook.solutions(NOTEBOOK):
        exec(code, dict(names))
        said.append(capsys.readouterr().out)
    assert len(said) == 3 and len(said[0].split()) == 2
    ranks = json.loads(said[1].replace("'", '"'))
    assert ranks["numbers"] == 16 and ranks["opposites"] > 16
    assert "even" in said[2] and "uneven" in said[2]


def test_the_notebook_has_short_cells():
    lesson_notebook.check(NOTEBOOK)
