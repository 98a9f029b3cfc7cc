"""Qwen2-VL: what is merged, images of every size, and passes and answers that are those of transformers' own model."""

import numpy as np
import pytest
import tiny_models as tiny
import torch
from PIL import Image
from safetensors import safe_open

from emkit import backbones
from emkit.alignment.calibration import calibrate
from emkit.alignment.sequences import collate, fold
from emkit.alignment.teacher import Recording
from emkit.checkpoints import Checkpoint
from emkit.task_vectors import TaskVectors
from eval import features

qwen2_vl = backbones.get("qwen2_vl")

QUESTIONS = ["What is it?", "And how many of them are there?", "Hm"]
ANSWERS = ["a cat", "7", ""]


def pictures(*sizes):
    rng = np.random.default_rng(5)
    return [Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)) for h, w in sizes]


IMAGES = pictures((8, 24), (17, 9), (40, 40))  # tokens of 8 × 8 pixels; the last is larger than the most pixels


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qwen2-vl")
    for seed, name in enumerate(("base", "x")):
        model, processor = tiny.qwen2_vl(seed=seed)
        tiny.save(model, folder / name, processor)
    return folder


@pytest.fixture(scope="module")
def loaded(zoo):
    return qwen2_vl.load(zoo / "base")


def test_merged_tensors_of_every_layout(zoo, loaded):
    with safe_open(zoo / "base" / "model.safetensors", "pt") as file:
        hub = list(file.keys())
    older = [name.replace("model.", "model.language_model.") for name in hub if not name.startswith("visual")]
    older += ["model." + name for name in hub if name.startswith("visual")]
    parameters = [name for name, _ in loaded[0].named_parameters()]
    for names in (hub, older, parameters):
        merged = qwen2_vl.merged_names(names)
        assert len(merged) == len(set(merged)) == 7 * 2
        assert {name.split(".")[-2] for name in merged} == {
            *("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
        }
        assert sorted(map(qwen2_vl.parameter_name, names)) == sorted(parameters)
        assert sorted(map(qwen2_vl.parameter_name, merged)) == sorted(qwen2_vl.merged_names(parameters))
    assert qwen2_vl.blocks(loaded[0]) == 2


def stock(model, batch):
    """transformers' own pass, which works out positions itself."""
    names = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw", "mm_token_type_ids")
    model.model.rope_deltas = None
    with torch.no_grad():
        return model(**{name: batch[name] for name in names if name in batch}, output_hidden_states=True)


@pytest.mark.parametrize("images", [IMAGES, [IMAGES[0], None, IMAGES[2]], [None] * 3])
def test_a_pass_is_the_stock_models(loaded, images):
    model, processor = loaded
    for responses in (ANSWERS, None):  # padded on the right, and on the left
        batch = qwen2_vl.encode(processor, images, QUESTIONS, responses)
        expected, real = stock(model, batch), batch["attention_mask"].bool()
        for layer in (1, 2):
            with torch.no_grad():
                found = qwen2_vl.forward(model, batch, hidden_layer=layer)
            torch.testing.assert_close(found.logits[real], expected.logits[real])
            torch.testing.assert_close(found.hidden[real], expected.hidden_states[layer][real])
    with torch.no_grad():
        some = qwen2_vl.forward(model, batch, positions=real)
    torch.testing.assert_close(some.logits, expected.logits[real])


def test_positions_are_transformers_own(loaded):
    model, processor = loaded
    batch = qwen2_vl.encode(processor, IMAGES, QUESTIONS, ANSWERS)
    assert sorted(map(tuple, batch["image_grid_thw"][:, 1:].tolist())) != [(2, 2)] * 3  # three sizes
    expected, _ = model.model.get_rope_index(
        batch["input_ids"], batch["mm_token_type_ids"], batch["image_grid_thw"], None, batch["attention_mask"]
    )
    real = batch["attention_mask"].bool()
    assert torch.equal(batch["position_ids"][:, real], expected[:, real])


def test_rows_are_the_chat_with_the_response(loaded):
    _, processor = loaded
    batch = qwen2_vl.encode(processor, IMAGES, QUESTIONS, ANSWERS)
    for row, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS)):
        tokens = int(batch["image_grid_thw"][row].prod()) // 4
        ids = batch["input_ids"][row][batch["attention_mask"][row].bool()]
        image = "<|vision_start|>" + "<|image_pad|>" * tokens + "<|vision_end|>"
        assert processor.tokenizer.decode(ids) == f"<|user|>{image}{question}</s><|assistant|>{answer}</s>"
        assert processor.tokenizer.decode(batch["input_ids"][row][batch["response_mask"][row]]) == answer + "</s>"


def test_cached_features_are_as_good_as_pixels(loaded, tmp_path):
    model, processor = loaded
    batch = qwen2_vl.encode(processor, IMAGES, QUESTIONS, ANSWERS)
    kept = features.kept(tmp_path, {}, qwen2_vl, model, processor, IMAGES)
    together = qwen2_vl.image_features(model, batch["pixel_values"], batch["image_grid_thw"])
    torch.testing.assert_close(kept(0, 3), together)
    sizes = [len(kept(i, i + 1)) for i in range(3)]
    assert sizes == (batch["image_grid_thw"].prod(1) // 4).tolist() and len(set(sizes)) == 3
    with torch.no_grad():
        torch.testing.assert_close(
            qwen2_vl.forward(model, batch, features=kept(0, 3)).logits, qwen2_vl.forward(model, batch).logits
        )
    answers = qwen2_vl.generate(model, processor, IMAGES, QUESTIONS, 6)
    assert qwen2_vl.generate(model, processor, IMAGES, QUESTIONS, 6, features=kept) == answers


@pytest.mark.parametrize("images", [IMAGES, [IMAGES[0], None, IMAGES[2]]])
def test_greedy_answers_are_those_of_asking_one_by_one(loaded, images):
    model, processor = loaded
    found = qwen2_vl.generate(model, processor, images, QUESTIONS, 6)
    assert any(found)
    for image, question, answer in zip(images, QUESTIONS, found):
        text = qwen2_vl.prompt(processor, question, image is not None)
        inputs = processor(images=None if image is None else [image], text=[text], return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False)
        start = inputs["input_ids"].shape[1]
        assert processor.tokenizer.decode(tokens[0, start:], skip_special_tokens=True).strip() == answer


def test_a_folded_sequence_has_the_states_of_its_rows(loaded):
    """Two questions about one image, a third about another of another size, and one about none."""
    model, processor = loaded
    expected, folded, seen = [], [], []
    for image, questions in ((IMAGES[0], QUESTIONS[:2]), (IMAGES[2], QUESTIONS[2:]), (None, QUESTIONS[:1])):
        batch = qwen2_vl.encode(processor, [image] * len(questions), questions, ["red", "blue sky"][: len(questions)])
        lengths, responses = batch["attention_mask"].sum(1).tolist(), batch["response_mask"].sum(1).tolist()
        rows = [ids[:n].numpy() for ids, n in zip(batch["input_ids"], lengths)]
        positions = [batch["position_ids"][:, r, :n].numpy() for r, n in enumerate(lengths)]
        folded.append(fold(rows, responses, "response", positions))
        logits = stock(model, batch).logits
        expected += [logits[r, n - k - 1 : n - 1] for r, (n, k) in enumerate(zip(lengths, responses))]
        if image is not None:
            first = [batch[name][: len(batch[name]) // len(rows)] for name in qwen2_vl.VISION]
            seen.append(qwen2_vl.image_features(model, *first))
        else:
            seen.append(qwen2_vl.image_features(model))
    batch, taken = collate(folded)
    with torch.no_grad():
        found = qwen2_vl.forward(model, batch, features=torch.cat(seen), positions=taken)
    torch.testing.assert_close(found.logits, torch.cat(expected), rtol=1e-4, atol=1e-4)


class Drawn:
    """Two images of different sizes with two questions each, and a question about none."""

    def identity(self, task):
        return {}

    def items(self, task, seed):
        from emkit.alignment.sources import Item

        for i, image in enumerate(IMAGES[:2]):
            yield Item(task, f"item {i}", image, (f"what is {i}?", "why?"))
        yield Item(task, "none", None, ("who?",))


def test_calibration_on_images_of_every_size(zoo, loaded, tmp_path):
    vectors = TaskVectors(Checkpoint.open(zoo / "base"), {"x": Checkpoint.open(zoo / "x")}, qwen2_vl.merged_names)
    settings = Recording(samples=3, response_tokens=1, hidden_layer=1, max_new_tokens=4)
    made = calibrate(qwen2_vl, loaded[0], vectors, Drawn(), settings, 0, tmp_path).tasks["x"]
    again = calibrate(qwen2_vl, loaded[0], vectors, Drawn(), settings, 0, tmp_path).tasks["x"]
    teacher, processor = qwen2_vl.load(zoo / "x")
    for i, image in enumerate((*IMAGES[:2], None)):
        assert torch.equal(made.features[i], again.features[i])
        rows = made.rows[i]
        batch = qwen2_vl.encode(
            processor, [image] * len(rows), [r["question"] for r in rows], [r["response"] for r in rows]
        )
        predicts = batch["response_mask"].roll(-1, dims=1)
        expected = stock(teacher, batch)
        torch.testing.assert_close(made.logits(i), expected.logits[predicts], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(made.hidden[i], expected.hidden_states[1][predicts], rtol=1e-4, atol=1e-4)
