"""What stands where: labelled boxes hold what they name, and patch targets agree with a count of single units."""

import itertools
import re

import numpy as np
import pytest

from emkit.zoo.data import SUBTASKS, Region, examples, patch_targets
from emkit.zoo.data.regions import HEADS
from emkit.zoo.data.words import COLORS


@pytest.fixture(scope="module")
def drawn() -> dict:
    return {subtask: examples(subtask, "train", 40, seed=9) for subtask in SUBTASKS}


def by_counting(regions, patches: int, head: str) -> np.ndarray:
    """The target by counting a fine raster's points in every patch."""
    fine = 96 * 8 // patches
    centres = (np.arange(96 * 8) + 0.5) / 8
    target, best = np.zeros((patches, patches), int), np.full((patches, patches), 0.2)
    for label, (x1, y1, x2, y2) in regions:
        inside = np.outer((centres > y1) & (centres < y2), (centres > x1) & (centres < x2))
        share = inside.reshape(patches, fine, patches, fine).mean(axis=(1, 3))
        for word in label.split():
            if word in HEADS[head]:
                for row, column in itertools.product(range(patches), repeat=2):
                    if share[row, column] >= best[row, column]:
                        target[row, column], best[row, column] = HEADS[head].index(word), share[row, column]
    return target


@pytest.mark.parametrize("patches", [6, 12])
def test_patch_targets_are_those_of_counting(patches):
    regions = [
        Region("red circle", (4, 4, 36, 36)),
        Region("blue sign", (30, 50, 94, 70)),
        Region("K", (41, 54, 49, 66)),
        Region("7", (49, 54, 57, 66)),
        Region("green star", (20, 20, 44, 44)),
    ]
    found = patch_targets(regions, patches)
    for head in HEADS:
        assert np.array_equal(found[head], by_counting(regions, patches, head)), head
        assert found[head].dtype == np.int64


def test_no_regions_give_no_labels():
    assert all(not target.any() for target in patch_targets((), 12).values())


@pytest.mark.parametrize("subtask", SUBTASKS)
def test_every_word_of_a_label_is_a_class_and_every_box_touches_the_picture(drawn, subtask):
    for example in drawn[subtask]:
        for label, (x1, y1, x2, y2) in example.regions:
            assert all(any(word in classes for classes in HEADS.values()) for word in label.split()), label
            assert x1 < x2 and y1 <= y2 and x2 > 0 and y2 > 0 and x1 < 96 and y1 < 96


@pytest.mark.parametrize("subtask", ["chartqa", "textvqa", "ocrvqa", "mathvista", "mathvision"])
def test_characters_stand_where_they_are_said_to(drawn, subtask):
    """Each character's box holds ink: its pixels differ among themselves far more than paper does."""
    for example in drawn[subtask]:
        pixels = np.asarray(example.image).astype(int)
        for label, box in example.regions:
            if len(label) == 1:
                x1, y1, x2, y2 = (max(0, round(v)) for v in box)
                inside = pixels[y1:y2, x1:x2]
                assert np.ptp(inside, axis=(0, 1)).max() > 90, (label, box)


def test_coloured_things_have_their_colour_in_their_box(drawn):
    for subtask in ("gqa", "chartqa", "textvqa"):
        for example in drawn[subtask]:
            pixels = np.asarray(example.image).astype(int)
            for label, box in example.regions:
                if label.split()[0] in COLORS:
                    x1, y1, x2, y2 = (max(0, round(v)) for v in box)
                    distance = np.abs(pixels[y1:y2, x1:x2] - np.array(COLORS[label.split()[0]])).max(axis=2)
                    assert distance.min() < 40, label


def test_the_printed_text_is_the_one_that_is_asked_for(drawn):
    for example in drawn["textvqa"]:
        printed = "".join(label for label, _ in example.regions if len(label) == 1)
        assert printed == "".join(re.findall(r"[A-Z0-9]+", example.qas[-1].answer))
