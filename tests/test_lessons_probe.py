"""Questions of a zoo's columns and the two quick measures, on the committed miniatures and on counted answers."""

import json
import math

import own_models as own
import pytest
import torch
import yaml
from PIL import Image

from emkit import backbones
from emkit.errors import UserError
from eval import profile
from eval.lessons import probe


@pytest.fixture(scope="module")
def pictures():
    return probe.open_zoo("mini", "internvl")


@pytest.fixture(scope="module")
def texts():
    return probe.open_zoo("mini", "mistral")


def test_questions_take_turns_among_the_experts_columns_and_are_the_same_for_a_seed(pictures):
    found = probe.questions(pictures, "Grounding", 7)
    assert [q.column for q in found] == ["RefCOCO", "RefCOCO+", "RefCOCOg"] * 2 + ["RefCOCO"]
    again = probe.questions(pictures, "Grounding", 7)
    assert [(q.prompt, q.gold, q.image.tobytes()) for q in found] == [
        (q.prompt, q.gold, q.image.tobytes()) for q in again
    ]
    assert probe.questions(pictures, "Grounding", 3) == found[:3]
    other = probe.questions(pictures, "Grounding", 7, seed=1)
    assert all(a.image.tobytes() != b.image.tobytes() for a, b in zip(found, other, strict=True))


def test_pictures_are_those_of_the_validation_split_and_prompts_ask_for_brevity(pictures, tmp_path):
    from eval.items import writer

    column = pictures.plan.protocol.columns["GQA"]
    theirs = [image for _, image in writer._items(column, "validation", pictures.plan.protocol.image_size)]
    ours = [q for q in probe.questions(pictures, "VQA", 8) if q.column == "GQA"]
    assert [q.image.tobytes() for q in ours] == [image.tobytes() for image in theirs[:4]]
    assert all(q.prompt.endswith("\nAnswer the question using a single word or phrase.") for q in ours)


def test_an_expert_answers_its_own_questions_better_than_the_base(texts, pictures):
    for zoo, task in ((texts, "Code"), (pictures, "OCR")):
        asked = probe.questions(zoo, task, 24)
        base = (probe.loss(zoo.live.set(0.0), asked), probe.accuracy(zoo.live, asked))
        own_ = (probe.loss(zoo.live.set({task: 1.0}), asked), probe.accuracy(zoo.live, asked))
        assert own_[0] < base[0] and own_[1] > base[1]
        assert (
            probe.loss(zoo.live.set(0.0), asked) == base[0]
        )  # what is kept of the questions is the same for any merge


def test_the_loss_about_an_image_is_that_of_the_model_itself(pictures):
    (question,) = probe.questions(pictures, "VQA", 1)
    live = pictures.live.set({"VQA": 1.0})
    start = backbones.get("internvl").prompt(live.processor, question.prompt)
    end = question.gold + live.processor.tokenizer.eos_token
    inputs = live.processor(images=[question.image], text=[start + end], return_tensors="pt")
    count = len(live.processor.tokenizer(end, add_special_tokens=False)["input_ids"])
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        logits = live.model(**inputs).logits[0].double().log_softmax(-1)
    at = range(len(logits) - count, len(logits))
    expected = -sum(float(logits[i - 1, inputs["input_ids"][0, i]]) for i in at) / count
    assert probe.loss(live, [question]) == pytest.approx(expected, rel=1e-4)
    other = [probe.Question(question.prompt, Image.new("RGB", (96, 96)), question.gold, "VQA", bool)]
    assert probe.loss(live, other) != pytest.approx(expected, rel=1e-3)


class Counted:
    """A model that gives these answers, and two token losses for each."""

    def __init__(self, *answers: str):
        self.answers = list(answers)

    def ask(self, *questions, images, max_new_tokens):
        return self.answers

    def losses(self, questions, answers, images):
        return [torch.full((len(answer),), float(number)) for number, answer in enumerate(answers, 1)]


def test_accuracy_counts_right_answers_by_each_kinds_rule(texts, pictures):
    boxes = probe.questions(pictures, "Grounding", 2)
    x1, y1, x2, y2 = json.loads(boxes[0].gold)
    shifted = f"[{x1},{y1},{x2},{y2 + (y2 - y1)}]"  # twice as high: an IoU of one half
    assert probe.accuracy(Counted(shifted, "a ring"), boxes) == 0.5
    sums = probe.questions(texts, "Math", 2)
    end = sums[0].gold.splitlines()[-1]
    assert end.startswith("#### ") and probe.accuracy(Counted("so it is\n" + end, "#### 1"), sums) == 0.5


def test_the_loss_is_a_mean_over_all_tokens_not_over_answers():
    asked = [probe.Question("?", None, gold, "x", bool) for gold in ("a", "bcd")]
    assert probe.loss(Counted(), asked) == pytest.approx((1 * 1 + 3 * 2) / 4)


def test_ones_own_models_and_questions_take_a_yaml_file_and_lines_with_answers(tmp_path):
    models = own.write_models(tmp_path / "models")
    for name in own.EXPERTS:
        lines = [json.dumps({"prompt": f"Tell {name} number {i}.", "answer": f"{name} {i}"}) for i in range(3)]
        (models / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = yaml.safe_load(profile.find("mini", "mistral").read_text(encoding="utf-8"))
    data |= {"name": "mine", "backbone": "causal_lm", "methods": {}, "sources": {}}
    data["models"] = {
        "base": str(models / "base"),
        "experts": {name: str(models / name) for name in own.EXPERTS},
    }
    files = {name: str(models / f"{name}.jsonl") for name in own.EXPERTS}
    data["calibration"] = {"source": "jsonl", "files": files, "samples": 2, "response_tokens": 1}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    zoo = probe.open_zoo(tmp_path / "mine.yaml", "causal_lm")
    found = probe.questions(zoo, "code", 3)
    assert zoo.names == list(own.EXPERTS)
    assert sorted((q.prompt, q.gold) for q in found) == [(f"Tell code number {i}.", f"code {i}") for i in range(3)]
    assert math.isfinite(probe.loss(zoo.live.set(0.5), found))
    assert probe.accuracy(Counted(f" {found[0].gold}\n", "no", "no"), found) == pytest.approx(1 / 3)
    with pytest.raises(UserError, match="only 3 questions of 'code', not 4"):
        probe.questions(zoo, "code", 4)
    with pytest.raises(UserError, match=r"no table .* 'causal_lm'"):
        zoo.plan  # noqa: B018 - a property that raises
    (models / "code.jsonl").write_text('{"prompt": "Why?"}\n', encoding="utf-8")
    with pytest.raises(UserError, match="no `answer`"):
        probe.questions(zoo, "code", 1)


def test_what_is_not_there_is_said_in_one_line(texts, tmp_path):
    with pytest.raises(UserError, match=r"no expert 'Coed'.*Code"):
        probe.questions(texts, "Coed", 1)
    with pytest.raises(UserError, match="is of the backbone mistral, not of internvl"):
        probe.open_zoo(profile.find("mini", "mistral"), "internvl")
    data = yaml.safe_load(profile.find("smoke", "mistral").read_text(encoding="utf-8"))
    data["models"]["base"] = str(tmp_path / "none")
    (tmp_path / "smoke.yaml").write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    with pytest.raises(UserError, match=r"reproduce table3 .*trains the zoo mistral-smoke"):
        probe.open_zoo(tmp_path / "smoke.yaml", "mistral").live  # noqa: B018 - a property that raises
