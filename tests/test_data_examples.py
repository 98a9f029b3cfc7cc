"""What every sub-task promises: sizes, splits without a shared item, determinism, a closed vocabulary."""

import hashlib
import json
import re

import numpy as np
import pytest

from emkit.zoo import data
from emkit.zoo.data import DOMAINS, SPLITS, SUBTASKS, examples, lexicon
from emkit.zoo.data.sampling import Draw, key_of, split_of

N = 60


@pytest.fixture(scope="module")
def drawn() -> dict:
    return {(subtask, split): examples(subtask, split, N, seed=3) for subtask in SUBTASKS for split in SPLITS}


def _tokens(text: str) -> list[str]:
    """Words, numbers and single other characters: no tokenizer of ours splits an answer into more."""
    return re.findall(r"[a-z]+|\d+|[A-Z]|[^\sa-z\dA-Z]", text)


def test_every_subtask_belongs_to_one_domain():
    assert sorted(s for group in DOMAINS.values() for s in group) == sorted(SUBTASKS)


@pytest.mark.parametrize("subtask", SUBTASKS)
def test_images_and_questions_have_the_promised_form(drawn, subtask):
    for split in SPLITS:
        assert len(drawn[subtask, split]) == N
        for example in drawn[subtask, split]:
            assert example.image.size == (96, 96) and example.image.mode == "RGB"
            assert np.asarray(example.image).std() > 0, "an empty image"
            dense = [qa for qa in example.qas if qa.kind.startswith("dense/")]
            assert 2 <= len(example.benchmark_qas) <= 5 and 1 <= len(dense) <= 2
            assert len({qa.question for qa in example.benchmark_qas}) == len(example.benchmark_qas)
            for qa in example.qas:
                assert qa.answer and len(_tokens(qa.answer)) < 60, qa
                assert "{" not in qa.question and not re.search(r"\ba [aeiou]|\ban [^aeiou]", qa.question), qa


@pytest.mark.parametrize("subtask", SUBTASKS)
def test_splits_share_no_spec_and_no_question_about_an_image(drawn, subtask):
    seen_keys, seen_items = {}, {}
    for split in SPLITS:
        for example in [*drawn[subtask, split], *examples(subtask, split, N, seed=4)]:
            assert seen_keys.setdefault(example.key, split) == split
            pixels = hashlib.sha256(example.image.tobytes()).hexdigest()
            for qa in example.qas:
                assert seen_items.setdefault((pixels, qa.question), split) == split


def test_the_split_is_the_specs_hash_and_nothing_else():
    shares = dict.fromkeys(SPLITS, 0)
    for value in range(4000):
        spec = {"b": value, "a": [1, "x"]}
        digest = hashlib.sha256(json.dumps(spec, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
        tenth = int(digest[:8], 16) % 10
        expected = "evaluation" if tenth == 9 else "validation" if tenth == 8 else "train"
        assert (key_of(spec), split_of(key_of(spec))) == (digest, expected)
        shares[expected] += 1
    assert abs(shares["train"] / 4000 - 0.8) < 0.03


@pytest.mark.parametrize("subtask", SUBTASKS)
def test_each_example_carries_the_split_of_its_key(drawn, subtask):
    for split in SPLITS:
        assert {split_of(example.key) for example in drawn[subtask, split]} == {split}


@pytest.mark.parametrize("subtask", SUBTASKS)
def test_an_item_depends_on_seed_and_index_alone(drawn, subtask):
    again = examples(subtask, "train", 5, seed=3)
    for one, other in zip(drawn[subtask, "train"], again, strict=False):
        assert (one.image.tobytes(), one.qas, one.key) == (other.image.tobytes(), other.qas, other.key)
    assert data.example(subtask, "train", 4, seed=3).key == again[4].key
    assert {e.key for e in examples(subtask, "train", 5, seed=5)}.isdisjoint({e.key for e in again})


@pytest.mark.parametrize("subtask", SUBTASKS)
def test_the_key_names_the_picture(drawn, subtask):
    """Different specs of a split draw different images: nothing random in a picture is missing from its spec."""
    by_key = {e.key: e.image.tobytes() for split in SPLITS for e in drawn[subtask, split]}
    assert len(set(by_key.values())) == len(by_key)


def test_matplotlib_settings_of_the_user_do_not_change_a_chart():
    import matplotlib

    plain = examples("chartqa", "train", 3, seed=1)
    with matplotlib.rc_context(
        {"text.hinting": "none", "font.family": "serif", "lines.linewidth": 9, "text.color": "red"}
    ):
        styled = examples("chartqa", "train", 3, seed=1)
    assert [e.image.tobytes() for e in plain] == [e.image.tobytes() for e in styled]


@pytest.mark.parametrize("subtask", SUBTASKS)
def test_an_image_of_another_size_shows_the_same(subtask):
    small, large = (data.example(subtask, "train", 0, seed=2, size=size) for size in (48, 144))
    assert (small.image.size, large.image.size) == ((48, 48), (144, 144))
    assert (small.qas, small.key) == (large.qas, large.key)


def test_the_lexicon_covers_every_question_and_answer(drawn):
    known = lexicon()
    words, characters = set(known["words"]), set(known["characters"])
    openings = set(known["answers"])
    for (subtask, _), group in drawn.items():
        for example in group:
            for qa in example.qas:
                text = data.prompt(subtask, qa).replace("Answer", "answer") + " " + qa.answer
                assert set(re.findall(r"[a-z]+", text)) <= words, qa
                assert set(text) <= characters, qa
                capitals = re.findall(r"[A-Z]{2,}", text)
                assert set(capitals) <= set(known["capitals"]), qa
                first = re.match(r"[a-z]+", qa.answer)
                small = example.subtask == "gqa" and qa.kind == "dense/objects"
                assert first is None or small or first[0] in openings, qa
    assert len(words) <= 300 and openings <= words


def test_only_short_answer_benchmarks_ask_for_brevity(drawn):
    for (subtask, _), group in drawn.items():
        benchmark, dense = group[0].qas[0], group[0].qas[-1]
        brief = subtask in ("vizwiz", "gqa", "chartqa", "textvqa", "ocrvqa")
        assert data.prompt(subtask, benchmark).endswith("using a single word or phrase.") == brief
        assert data.prompt(subtask, dense) == dense.question


def test_every_question_kind_has_three_wordings():
    from emkit.zoo.data.templates import TEMPLATES

    for kind, wordings in TEMPLATES.items():
        assert len(set(wordings)) >= 3, kind
        assert len({frozenset(re.findall(r"\{(\w+)\}", w)) - {"mark"} for w in wordings}) == 1, kind


def test_draw_is_uniform_and_covers_both_ends():
    draw = Draw(1, 2)
    values = [draw.integer(3, 6) for _ in range(4000)]
    assert [abs(values.count(v) - 1000) < 120 for v in (3, 4, 5, 6)] == [True] * 4
    assert sorted(draw.shuffled(range(7))) == list(range(7)) and len(set(draw.sample(range(9), 4))) == 4


def test_an_unknown_subtask_or_split_is_refused():
    for arguments in (("docvqa", "train"), ("gqa", "test")):
        with pytest.raises(ValueError, match="no sub-task"):
            examples(*arguments, 1, 0)
