"""Calibration on the text zoo: whose questions, which split, whose answers, and a fit on a language model."""

import itertools

import pytest
import tiny_models as tiny
import torch
from conftest import merge_row, recipe_data, save_recipe
from text_benchmarks import TEXT, asked, column, write

from emkit import backbones
from emkit.alignment.calibration import calibrate
from emkit.alignment.sources import JsonlSource, TextZooSource, ZooSamples, ZooSource
from emkit.alignment.teacher import Recording
from emkit.checkpoints import Checkpoint
from emkit.errors import UserError
from emkit.task_vectors import TaskVectors
from emkit.zoo import text
from emkit.zoo.data.sampling import split_of
from eval.items import lines

mistral = backbones.get("mistral")

SETTINGS = Recording(samples=2, response_tokens=12, hidden_layer=1, max_new_tokens=5)


def first(task: str, n: int, seed: int = 0, split: str = "train") -> list:
    return list(itertools.islice(TextZooSource(split).items(task, seed), n))


def test_the_backbone_and_the_recipe_choose_the_source():
    for backbone in ("mistral", "causal_lm"):
        assert type(ZooSamples(samples=1, response_tokens=1).drawn_from(backbone)) is TextZooSource
        assert ZooSamples(samples=1, response_tokens=1, split="validation").drawn_from(backbone).split == "validation"
        assert type(ZooSamples(samples=1, response_tokens=1, source="jsonl").drawn_from(backbone)) is JsonlSource
    for backbone in ("internvl", "qwen2_vl"):
        assert type(ZooSamples(samples=1, response_tokens=1).drawn_from(backbone)) is ZooSource


@pytest.mark.parametrize("task", text.DOMAINS)
def test_sub_tasks_take_turns_and_no_item_comes_twice_or_from_another_split(task):
    found = first(task, 300)
    subtasks = text.DOMAINS[task]
    assert [item.subtask for item in found] == [subtasks[i % len(subtasks)] for i in range(300)]
    assert len({(item.subtask, item.key) for item in found}) == 300 == len({item.questions for item in found})
    assert {split_of(item.key) for item in found} == {"train"} and not any(item.image for item in found)
    assert first(task, 300) == found
    assert {item.key for item in first(task, 40, seed=1)} != {item.key for item in found[:40]}


def test_the_stream_is_not_that_of_the_experts_training_items():
    """The same seed draws other items, and in another order."""
    training = [item.key for item in text.items("gsm8k", "train", 50, 0)]
    assert [item.key for item in first("Math", 100) if item.subtask == "gsm8k"] != training


@pytest.mark.parametrize("name", TEXT)
def test_questions_are_those_of_evaluation_to_the_letter(name, tmp_path):
    """Against what the harness sends: `asked` is checked against the real one by the harnesses' own tests."""
    write("validation", tmp_path, {name: 40})
    subtask = column(name).subtask
    drawn = text.distinct(subtask, "validation", column(name).seed)
    sent = [asked(name, row) for row in lines.rows(tmp_path, column(name))]
    assert [text.prompt(item) for item in itertools.islice(drawn, 40)] == sent
    if name == "HumanEval":
        requests = {item.questions[0].split("\n")[0] for item in first("Code", 80) if item.subtask == "humaneval"}
        assert requests == {"Complete the function."}, "as in evaluation, not as in training"


def test_a_source_that_ends_says_how_far_it_came(monkeypatch, zoo, tmp_path):
    few = text.items("alpaca_eval", "train", 2, 0)
    monkeypatch.setattr(text, "distinct", lambda *given: iter(few))
    with pytest.raises(UserError, match="calibration set of task 'Chat' fills only 0 samples of 1000 response tokens"):
        made(zoo, tmp_path, Recording(1, 1000, 1, max_new_tokens=4))


def test_an_unknown_task_is_one_line():
    for call in (lambda: TextZooSource("train").identity("VQA"), lambda: first("VQA", 1)):
        with pytest.raises(UserError, match="knows no task 'VQA': name the experts Chat, Math, Code, or use jsonl"):
            call()


# ---------------------------------------------------------------------------------------- on a tiny Mistral


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    for seed, name in enumerate(("base", *text.DOMAINS)):
        tiny.save(tiny.language_model("mistral", seed=seed), folder / name)
    return folder


def vectors(zoo) -> TaskVectors:
    experts = {name: Checkpoint.open(zoo / name) for name in text.DOMAINS}
    return TaskVectors(Checkpoint.open(zoo / "base"), experts, mistral.merged_names)


def made(zoo, cache, settings=SETTINGS, seed=0):
    base, _ = mistral.load(zoo / "base")
    return calibrate(
        mistral,
        base,
        vectors(zoo),
        ZooSamples(samples=1, response_tokens=1).drawn_from("mistral"),
        settings,
        seed,
        cache,
    )


def test_samples_are_packs_of_items_answered_by_their_own_expert(zoo, tmp_path):
    found = made(zoo, tmp_path)
    for name, task in found.tasks.items():
        teacher, words = mistral.load(zoo / name)
        assert task.samples == 2 and set(task.sample_of) == {0, 1}
        for sample in range(2):
            tokens = [rows[0]["tokens"] for rows, s in zip(task.rows, task.sample_of, strict=True) if s == sample]
            assert sum(tokens) >= 12 > sum(tokens[:-1])
        drawn = first(name, len(task.rows))
        for i, (rows, item) in enumerate(zip(task.rows, drawn, strict=True)):
            assert len(rows) == 1 and (rows[0]["subtask"], rows[0]["key"]) == (item.subtask, item.key)
            assert (rows[0]["question"],) == item.questions
            assert mistral.generate(teacher, words, [None], [rows[0]["question"]], 5) == [rows[0]["response"]]
            batch = mistral.encode(words, [None], [rows[0]["question"]], [rows[0]["response"]])
            with torch.no_grad():
                stock = teacher(batch["input_ids"]).logits[batch["response_mask"].roll(-1, dims=1)]
            torch.testing.assert_close(task.logits(i), stock, rtol=1e-4, atol=1e-5)
            assert len(task.features[i]) == 0, "there is no image"


def test_the_cache_knows_seed_split_and_source(zoo, tmp_path):
    base, _ = mistral.load(zoo / "base")

    def key(split: str, seed: int) -> str:
        settings = Recording(1, 4, 1, max_new_tokens=4)
        return calibrate(mistral, base, vectors(zoo), TextZooSource(split), settings, seed, tmp_path).keys["Math"]

    assert len({key("train", 0), key("train", 1), key("validation", 0)}) == 3
    assert key("train", 0) == key("train", 0)


def test_a_recipe_of_a_language_model_is_fitted_on_the_text_zoo(zoo, tmp_path):
    data = recipe_data(zoo)
    data["backbone"] = "mistral"
    data["models"]["experts"] = {name: str(zoo / name) for name in text.DOMAINS}
    data["calibration"] = {"samples": 1, "response_tokens": 6, "max_new_tokens": 3}
    data["methods"]["expert_merging"]["beta"] = {"Code": 2.0}
    data["rows"] = [row for row in data["rows"] if row.get("model") != "VQA"]
    loaded = save_recipe(tmp_path, data)
    report = merge_row(loaded, "expert_merging", 0, tmp_path / "out", cache=tmp_path / "cache", scale=0.3)
    merged, _ = mistral.load(tmp_path / "out")
    assert set(report["calibration"]) == set(text.DOMAINS)
    base = mistral.load(zoo / "base")[0].state_dict()
    changed = {name for name, tensor in merged.state_dict().items() if not torch.equal(tensor, base[name])}
    assert changed == set(mistral.merged_names(base))
