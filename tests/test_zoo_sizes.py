"""Pictures of several sizes: the drawn square lies in them, and what is said about boxes follows it."""

import re
from itertools import islice

import numpy as np
import pytest

from emkit.alignment.sources import ZooSamples
from emkit.zoo import data
from emkit.zoo.data import patch_targets, sheets, sizes
from emkit.zoo.data.documents import document

PAIRS = {
    subtask: list(
        zip(data.examples(subtask, "train", 12, 4), data.examples(subtask, "train", 12, 4, data.MIXED), strict=True)
    )
    for subtask in ("vizwiz", "refcoco+", "chartqa")
}
BOX = re.compile(r"\[(\d+),(\d+),(\d+),(\d+)\]")


def corner_of(square, mixed) -> tuple[int, int]:
    """Where the square lies in the picture, found by its pixels."""
    small, large = np.asarray(square.image), np.asarray(mixed.image)
    for y in range(large.shape[0] - 95):
        for x in range(large.shape[1] - 95):
            if np.array_equal(large[y : y + 96, x : x + 96], small):
                return x, y
    raise AssertionError("the square is not in the picture")


@pytest.mark.parametrize("subtask", PAIRS)
def test_the_drawn_square_is_in_the_picture_and_its_regions_with_it(subtask):
    for square, mixed in PAIRS[subtask]:
        assert all(side in (96, 112) for side in mixed.image.size) and mixed.key == square.key
        x, y = corner_of(square, mixed)
        for old, new in zip(square.regions, mixed.regions, strict=True):
            assert new.label == old.label
            assert np.allclose(np.subtract(new.box, old.box), (x, y, x, y))
    assert len({mixed.image.size for _, mixed in PAIRS[subtask]}) > 2


@pytest.mark.parametrize("subtask", ["vizwiz", "refcoco+"])
def test_boxes_in_text_are_those_of_the_square_moved(subtask):
    found = 0
    for square, mixed in PAIRS[subtask]:
        corner, size = np.tile(corner_of(square, mixed), 2), np.tile(mixed.image.size, 2)
        for old, new in zip(square.qas, mixed.qas, strict=True):
            assert BOX.sub("", new.question + new.answer) == BOX.sub("", old.question + old.answer)
            for one, other in zip(BOX.findall(old.question + old.answer), BOX.findall(new.question + new.answer)):
                drawn = np.array(one, float) * 0.096 + corner  # to half a unit
                assert np.abs(np.array(other, float) / 1000 * size - drawn).max() < 0.48 + 0.56 + 1e-9
                found += 1
            if "bbox" in new.fields:  # in pixels, exactly
                assert np.array_equal(np.array(new.fields["bbox"]), np.array(old.fields["bbox"]) + corner)
                said = np.array(BOX.fullmatch(new.answer).groups(), float) / 1000 * size
                assert np.abs(said - new.fields["bbox"]).max() <= 0.005 * 112 + 1e-9
    assert found > 12


def test_patches_of_a_bordered_picture_are_those_of_the_square_and_nothing_on_the_border():
    square = data.example("refcoco", "train", 1, 4)
    picture = sizes.bordered(square, (112, 96), (8, 0), 100)
    inner, whole = patch_targets(square.regions), patch_targets(picture.regions, 12, (12, 14))
    for head, classes in inner.items():
        assert classes.any() == (head != "character") and np.array_equal(whole[head][:, 1:13], classes)
        assert not whole[head][:, [0, 13]].any()


def test_sheets_are_of_several_sizes_too():
    assert {sheets.sheet(1, index, data.MIXED).image.size for index in range(20)} > {(96, 96), (112, 96)}


@pytest.mark.parametrize("subtask", PAIRS)
def test_a_document_holds_question_and_answer_and_no_answer_as_a_benchmark_wants_it(subtask):
    for _, mixed in PAIRS[subtask]:
        for qa in mixed.benchmark_qas:
            before, learned = document(qa)
            assert BOX.sub("", qa.question) in before and learned.strip() != qa.answer and not BOX.search(learned)
            assert re.findall(r"\w+", qa.answer) == re.findall(r"\w+", learned)[5:]


def test_calibration_sees_images_and_questions_as_evaluation_has_them():
    seen = {
        backbone: list(islice(ZooSamples(samples=1, response_tokens=1).drawn_from(backbone).items("VQA", 1), 20))
        for backbone in ("internvl", "qwen2_vl")
    }
    assert {item.image.size for item in seen["internvl"]} == {(96, 96)}
    assert {item.image.size for item in seen["qwen2_vl"]} == {(96, 96), (112, 96), (96, 112), (112, 112)}
    for one, other in zip(seen["internvl"], seen["qwen2_vl"], strict=True):
        plain = [question.removesuffix(data.SHORT_PHRASES) for question in other.questions]
        assert one.key == other.key and [question + data.SHORT_ANSWER for question in plain] == list(one.questions)
