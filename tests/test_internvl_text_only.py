"""InternVL and a question about no image: alone, beside one with an image, and in a calibration set."""

import json

import numpy as np
import pytest
import torch
from conftest import open_task_vectors
from PIL import Image

from emkit import backbones
from emkit.alignment.calibration import calibrate
from emkit.alignment.sources import Samples
from emkit.alignment.teacher import Recording

internvl = backbones.get("internvl")


@pytest.fixture(scope="module")
def loaded(tiny_zoo):
    return internvl.load(tiny_zoo / "base")


@pytest.fixture(scope="module")
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))


def test_a_pass_is_the_stock_models(loaded, image):
    model, processor = loaded
    for images in ([None, None], [image, None]):
        batch = internvl.encode(processor, images, ["what color is it?", "how many?"], ["red", "two"])
        names = [name for name in ("input_ids", "attention_mask", "pixel_values") if name in batch]
        with torch.no_grad():
            found, stock = internvl.forward(model, batch), model(**{name: batch[name] for name in names})
        torch.testing.assert_close(found.logits, stock.logits)
    assert "<IMG_CONTEXT>" not in processor.tokenizer.decode(batch["input_ids"][1])


def test_answers_do_not_depend_on_the_neighbour(loaded, image):
    model, processor = loaded
    questions = ["what color is it?", "how many?"]
    together = internvl.generate(model, processor, [image, None], questions, 6)
    assert together == [internvl.generate(model, processor, [i], [q], 6)[0] for i, q in zip([image, None], questions)]


def test_a_calibration_set_with_and_without_images(tiny_zoo, loaded, image, tmp_path):
    image.save(tmp_path / "a.png")
    lines = [{"image": "a.png", "question": "what color is it?"}, {"prompt": "how many?"}]
    files = {}
    for task in ("VQA", "Chart"):
        (tmp_path / f"{task}.jsonl").write_text("\n".join(map(json.dumps, lines)))
        files[task] = str(tmp_path / f"{task}.jsonl")
    given, settings = Samples(files=files).drawn_from("internvl"), Recording(2, 1, 1, max_new_tokens=4)
    for _ in range(2):  # made, then read
        made = calibrate(internvl, loaded[0], open_task_vectors(tiny_zoo), given, settings, 0, tmp_path / "cache")
        counts = {row[0]["question"]: len(f) for row, f in zip(made.tasks["VQA"].rows, made.tasks["VQA"].features)}
        assert counts["how many?"] == 0 and counts["what color is it?"] > 0
