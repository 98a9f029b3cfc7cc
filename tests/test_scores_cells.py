"""Score files: what is written comes back, and anything that does not fit is refused."""

import json

import pytest

from emkit.errors import UserError
from eval import scores

ABOUT = {"row": "ta", "seed": 0, "benchmark": "RefCOCO+", "recipe_sha256": "r", "model_sha256": "m", "data_sha256": "d"}
ITEMS = [
    {"index": "a", "prediction": "one\u2028two\n", "score": 1.0, "groups": []},
    {"index": "b", "prediction": "", "score": 0.0, "groups": []},
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "mini" / "internvl" / "ta" / "0" / "RefCOCO+.json"


def test_a_scored_cell_comes_back(path):
    written = scores.write_scored(path, ITEMS, **ABOUT)
    assert scores.read_cell(path) == written and scores.read_items(path) == ITEMS
    assert (written.status, written.value, written.n, written.stderr) == ("ok", 50.0, 2, 50.0)


def test_same_cell_same_bytes(path):
    scores.write_scored(path, ITEMS, **ABOUT)
    first = path.read_bytes(), scores.items_path(path).read_bytes()
    scores.write_scored(path, ITEMS, **ABOUT)
    assert first == (path.read_bytes(), scores.items_path(path).read_bytes())


def test_a_single_item_has_no_stderr(path):
    assert scores.write_scored(path, ITEMS[:1], **ABOUT).stderr is None
    assert scores.read_cell(path).value == 100.0


@pytest.mark.parametrize("status", ["failed", "no judge"])
def test_an_unscored_cell_says_why_and_holds_no_numbers(path, status):
    scores.write_scored(path, ITEMS, **ABOUT)
    scores.write_unscored(path, status, "the judge\n does not answer", **ABOUT)
    cell = scores.read_cell(path)
    assert (cell.status, cell.reason, cell.value, cell.n) == (status, "the judge does not answer", None, None)
    assert not scores.items_path(path).exists()
    with pytest.raises(UserError, match="no items"):
        scores.read_items(path)


DAMAGE = {
    "truncated": lambda text: text[: len(text) // 2],
    "not an object": lambda text: "[]",
    "another value": lambda text: text.replace('"value": 50.0', '"value": 51.0'),
    "another n": lambda text: text.replace('"n": 2', '"n": 3'),
    "not a number": lambda text: text.replace('"value": 50.0', '"value": NaN'),
    "value as text": lambda text: text.replace('"value": 50.0', '"value": "50"'),
    "out of range": lambda text: text.replace('"value": 50.0', '"value": 150.0'),
    "another stderr": lambda text: text.replace('"stderr": 50.0', '"stderr": 1.0'),
    "unknown status": lambda text: text.replace('"ok"', '"fine"'),
    "failed with a value": lambda text: text.replace('"ok"', '"failed"'),
    "another benchmark": lambda text: text.replace('"RefCOCO+"', '"GQA"'),
    "another items file": lambda text: text.replace("RefCOCO+.items", "../x.items"),
    "a missing key": lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k != "harness"}),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_cell_is_refused(path, damage):
    scores.write_scored(path, ITEMS, **ABOUT)
    text = path.read_text()
    assert damage(text) != text
    path.write_text(damage(text))
    with pytest.raises(UserError, match="damaged score file"):
        scores.read_cell(path)


def test_changed_or_missing_items_are_refused(path):
    scores.write_scored(path, ITEMS, **ABOUT)
    file = scores.items_path(path)
    file.write_text(file.read_text().replace("1.0", "0.0"))
    with pytest.raises(UserError, match="has changed"):
        scores.read_cell(path)
    file.unlink()
    with pytest.raises(UserError, match="missing"):
        scores.read_items(path)


def test_an_absent_cell_is_a_clear_error(path):
    with pytest.raises(UserError, match="no score file"):
        scores.read_cell(path)


@pytest.mark.parametrize("bad", [{"score": 2.0}, {"score": True}, {"index": 3}, {"prediction": None}, {"groups": "a"}])
def test_items_that_are_none_are_not_written(path, bad):
    with pytest.raises(UserError):
        scores.write_scored(path, [{**ITEMS[0], **bad}], **ABOUT)
    assert not path.exists()
