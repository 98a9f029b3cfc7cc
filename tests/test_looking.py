"""Items, pictures and answers: read as the harnesses read them, and shown so that no answer can do harm."""

import base64
import csv
import io
import json
import os
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from small_plan import score, small_plan

from emkit.errors import UserError
from eval import columns, looking, scores
from eval.looking import grounding, reading, sources
from eval.looking.contact import save
from eval.places import Job
from eval.plan import Plan

# VLMEvalKit itself, in a process of its own: what its classes make of a table's pictures, and its readers' answers
UPSTREAM = """
import json, sys
from eval import columns
from eval.vlm import harness
asked = json.load(open(sys.argv[1]))
refcoco = harness.modules()["refcoco"].RefCOCODataset
infer = harness.modules()["mathvista"].can_infer
pictures = {}
for name in ("OCRVQA", "RefCOCO+"):
    dataset, rows = harness.open_dataset(sys.argv[2], columns.load(name))
    for _, line in rows.iterrows():
        pictures[f"{name} {line['index']}"] = dataset.dump_image(line)[0]
def box(text, width, height):
    found = refcoco._parse_prediction(text)
    found = None if found is None else refcoco._to_absolute(found, width, height)
    return None if found is None else found.tolist()
print("ANSWER" + json.dumps({
    "pictures": pictures,
    "boxes": [box(*case) for case in asked["boxes"]],
    "overlaps": [refcoco._compute_iou(*pair) for pair in asked["pairs"]],
    "options": [infer(text, dict(zip("ABCDE", choices))) for text, choices in asked["options"]],
    "splits": [refcoco._category_to_split(text) for text in asked["splits"]],
}))
"""
BOXES = [
    ("[540,20,710,190]", 96, 96),
    ("[ ring ,20,", 96, 96),
    ("[320,110,", 96, 96),
    ("", 96, 96),
    ("0.1 0.2 0.9 0.8", 200, 100),
    ("box (10, 20), (1200, 40)", 640, 480),
    ("[900 800 100 200] and [1,2,3,4]", 96, 64),
    ("1 2 3 then [ .5, -0.25 ,1e0 , +1.5]", 50, 50),
    ("7 [1, 2, 3, 4, 5]", 96, 96),
    ("[-10, -20, 300, 400]", 96, 96),
]
PAIRS = [
    ([0, 0, 10, 10], [5, 5, 15, 15]),
    ([0, 0, 1, 1], [1, 0, 2, 1]),
    ([2, 2, 2, 2], [2, 2, 2, 2]),
    ([0, 0, 4, 4], [1, 1, 3, 3]),
]
OPTIONS = [
    ("B", ["6", "2"]),
    ("(B).", ["6", "2"]),
    ("the answer is 2", ["6", "2"]),
    ("60", ["60", "20"]),
    ("A or B", ["6", "2"]),
    ("A is what I would say if asked", ["6", "2"]),
    ("yellow", ["60", "20", "100", "90"]),
    ("Z", ["6", "2"]),
    ("Cannot determine the answer", ["6", "2"]),
    ("Red", ["red", "blue"]),
    ("", ["6", "2"]),
    ("D, D", ["1", "2", "3", "44"]),
]
SPLITS = ["RefCOCO val", "RefCOCO+ test A", "RefCOCOg test", "RefCOCO+ testB", "RefCOCO", "RefCOCO other part"]


def png(colour, size=(40, 30)) -> str:
    noise = np.random.default_rng(colour).integers(0, 255, (*size, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, format="PNG")
    return base64.b64encode(stream.getvalue()).decode()


def table(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture(scope="module")
def upstream(tmp_path_factory):
    """Tables with references to other rows' pictures, and what VLMEvalKit says of them and of all cases."""
    folder = tmp_path_factory.mktemp("lmu")
    books = [("7", png(1)), ("8", "7"), ("9", png(2)), ("10", "9")]
    table(
        folder / "OCRVQA_TESTCORE.tsv",
        [{"index": i, "image": image, "question": "who?", "answer": "[1, 2]"} for i, image in books],
    )
    regions = [("0", png(3), "RefCOCO_val"), ("1", png(4), "RefCOCO+_val"), ("2", "RefCOCO+_val_1", "RefCOCO+_val")]
    regions += [("3", "RefCOCO_val_0", "RefCOCO+_val")]
    corners = {"bbox_x1": "1", "bbox_y1": "2", "bbox_x2": "30", "bbox_y2": "40", "width": "30", "height": "40"}
    rows = [{"index": i, "image": image, "question": "where?", **corners, "split": s} for i, image, s in regions]
    table(folder / "RefCOCO.tsv", rows)
    (folder / "asked.json").write_text(
        json.dumps({"boxes": BOXES, "pairs": PAIRS, "options": OPTIONS, "splits": SPLITS})
    )
    run = subprocess.run(
        [sys.executable, "-c", UPSTREAM, str(folder / "asked.json"), str(folder)],
        env=os.environ | {"LMUData": str(folder)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return folder, json.loads(run.stdout.split("ANSWER")[1])


def test_pictures_and_indices_are_those_of_vlmevalkit(upstream):
    folder, theirs = upstream
    ours = {}
    for name in ("OCRVQA", "RefCOCO+"):
        for item in sources._of_table(folder, columns.load(name)):
            ours[f"{name} {item.index}"] = item.picture.image
    assert list(ours) == list(theirs["pictures"])
    for name, path in theirs["pictures"].items():
        assert np.array_equal(np.asarray(ours[name]), np.asarray(Image.open(path).convert("RGB"))), name


def test_a_reference_to_no_row_is_one_line(tmp_path):
    table(tmp_path / "OCRVQA_TESTCORE.tsv", [{"index": "0", "image": "5", "question": "who?", "answer": "x"}])
    with pytest.raises(UserError, match="item 0 is '5', which is no row"):
        sources._of_table(tmp_path, columns.load("OCRVQA"))


def test_boxes_options_and_splits_are_read_as_vlmevalkit_reads_them(upstream):
    _, theirs = upstream
    for case, box in zip(BOXES, theirs["boxes"], strict=True):
        found = reading.box(*case)
        assert found == (None if box is None else pytest.approx(box)), case
    assert [reading.overlap(*pair) for pair in PAIRS] == pytest.approx(theirs["overlaps"])
    assert [reading.option(*case) or False for case in OPTIONS] == theirs["options"]
    assert [sources._split(text) for text in SPLITS] == theirs["splits"]


# ------------------------------------------------------------------------------------------ items of a plan
@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A plan of four columns of pictures whose items are drawn once."""
    plan = small_plan(tmp_path_factory.mktemp("plan"), columns=["VizWiz", "GQA", "MathVista", "RefCOCO+"], compare=[])
    sources.folder(plan, plan.protocol.columns["GQA"])
    return plan


def answer(plan, job, benchmark, answers):
    """Write a score file of given (index, prediction, score)."""
    about = plan.expected(plan.resolved(job), benchmark)
    about |= {"row": job.row, "seed": job.seed, "benchmark": benchmark}
    made = [{"index": index, "prediction": text, "score": value, "groups": []} for index, text, value in answers]
    scores.write_scored(plan.cell(job, benchmark), made, **about)


def test_items_join_questions_and_answers(drawn, capsys):
    empty = looking.items(drawn, "RefCOCO+")
    assert capsys.readouterr().out == f"RefCOCO+: no row of Table 1 has been run; `{drawn.command}` runs them\n"
    assert looking.asked(empty) == [] and len(empty) == 10
    job = Job("base", 0)
    right = empty["gold"][0][0]
    told = [(empty["index"][0], right, 1.0), (empty["index"][1], "[ ring ,20,", 0.0)]
    answer(drawn, job, "RefCOCO+", told + [(index, "[1,2,3,4]", 0.0) for index in empty["index"][2:9]])
    frame = looking.items(drawn, "RefCOCO+", ["base", "task_arithmetic"])
    assert "not run yet: task_arithmetic" in capsys.readouterr().out
    assert looking.asked(frame) == ["base"] and frame.attrs["labels"]["base"] == "Base"
    assert list(frame["base score"][:2]) == [1.0, 0.0] and np.isnan(frame["base score"][9])
    assert frame["base box"][0] == pytest.approx(frame["box"][0], abs=0.5) and frame["base box"][1] is None
    assert frame["base prediction"][9] is None  # the row has no score of it
    assert looking.well_formed(frame)["base"] == pytest.approx(100 * 8 / 9)
    assert all(index.startswith("RefCOCO+_val_") for index in frame["index"])
    assert all(isinstance(picture.image, Image.Image) for picture in frame["picture"])


def test_every_harness_s_gold_answer_is_well_formed_and_nothing_is_not(drawn, tmp_path):
    plans = [(drawn, name) for name in drawn.benchmarks]
    text = Plan("table3", "smoke", tmp_path)
    plans += [(text, name) for name in text.benchmarks]
    for plan, name in plans:
        form = reading.form(plan.protocol.columns[name])
        found = sources.read(plan, name)
        assert len(found) == plan.protocol.columns[name].n
        for item in found:
            assert form.holds(item.fields.get("solution", item.gold[0]), item.fields), (name, item)
            asks = name not in ("GQA", "VizWiz", "AlpacaEval")
            assert not form.holds(" ", item.fields), name
            assert form.holds("I would rather not, thank you", item.fields) != asks or name in ("MATH-Vision",), name
    mbpp = sources.read(text, "MBPP")[0]
    assert mbpp.fields["text"] in mbpp.question and mbpp.fields["test_list"][0] in mbpp.question


def test_annotators_options_and_groups(drawn):
    asked = looking.items(drawn, "VizWiz", [])
    assert {len(gold) for gold in asked["gold"]} == {10}
    assert sources.gold_text(("a", "b", "a")) == "a ×2, b" and sources.gold_text(("B", "40")) == "B or 40"
    for item in sources.read(drawn, "MathVista"):
        if item.fields["question_type"] == "multi_choice":
            letter, value = item.gold
            assert f"({letter}) {value}" in item.question and value == item.fields["answer"]
    groups = {group for groups in looking.items(drawn, "MathVista", [])["groups"] for group in groups}
    assert groups <= set(drawn.protocol.columns["MathVista"].parts) and groups


def test_wrong_names_and_other_items_are_one_line(drawn, tmp_path, capsys):
    with pytest.raises(UserError, match=r"no column 'RefCOC'.*RefCOCO"):
        looking.items(drawn, "RefCOC")
    with pytest.raises(UserError, match=r"unknown row 'bsae'.*base"):
        looking.items(drawn, "GQA", ["bsae"])
    score(drawn, Job("base", 0), "GQA", 1.0, 0.0)
    path = drawn.cell(Job("base", 0), "GQA")
    path.write_text(path.read_text().replace(drawn.items_identity("evaluation", "GQA"), "of other items"))
    assert looking.asked(looking.items(drawn, "GQA", ["base"])) == []
    assert "scored on other items than these: base" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"published set, which is not drawn: put .*GQA_TestDev_Balanced.tsv"):
        looking.items(Plan("table1", "paper", tmp_path), "GQA", [])


# ------------------------------------------------------------------------------------------------- shown
class Tags(HTMLParser):
    """The tags of a page with their attributes, and its text."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


TAGS = ("div", "p", "table", "thead", "tbody", "tr", "th", "td", "img", "br", "b", "i", "code", "small")
EVIL = '<script>alert("1")</script>" onerror="alert(2)\u202e\x1b[31m $\\href{javascript:alert(3)}{x}$ &lt;'


def frame_of(predictions, values, question=EVIL):
    n = len(predictions)
    picture = sources.Picture(png(5))
    data = {"index": [EVIL] * n, "question": [question] * n, "picture": [picture] * n, "gold": [(EVIL, "b")] * n}
    data |= {"groups": [()] * n, "box": [(1.0, 2.0, 20.0, 30.0)] * n, "r prediction": predictions, "r score": values}
    data |= {"r well-formed": [True] * n, "r box": [(1.0, 2.0, 20.0, 30.0), *[None] * (n - 1)]}
    frame = pd.DataFrame(data)
    frame.attrs = {"benchmark": EVIL, "labels": {"r": EVIL}}
    return frame


def test_no_text_of_a_gallery_is_read_as_anything_but_text():
    gallery = looking.show(frame_of([EVIL], [0.5]))
    page = Tags(gallery._repr_html_())
    assert {tag for tag, _ in page.tags} <= {*TAGS}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        assert set(attributes) <= {"style", "class", "scope", "src", "width", "alt"}, tag
    (image,) = [attributes for tag, attributes in page.tags if tag == "img"]
    assert image["src"].startswith("data:image/") and '<script>alert("1")</script>' in image["alt"]
    assert (
        page.text.count('<script>alert("1")</script>" onerror="alert(2)') == 6
    )  # title, row, index, question, gold, answer
    assert "\u202e" not in page.text and "\x1b" not in page.text and "\\u202e" in page.text
    assert "mathjax_ignore" in page.tags[0][1]["class"]
    assert "◐ 0.50" in page.text


def test_marks_say_more_than_colour(tmp_path):
    frame = frame_of(["a", "b", "", None], [1.0, 0.0, 0.0, np.nan], "how many?")
    frame["r well-formed"] = [True, True, False, None]
    page = Tags(looking.show(frame).body).text
    assert "✓ right" in page and "✗ wrong" in page and "✗ wrong, unreadable" in page and "no score" in page
    assert "nothing" in page
    looking.show(frame, n=2).save(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert "no such item" in looking.show(frame[frame["r score"] > 2]).body
    with pytest.raises(UserError, match="no answers of 'x': it has r"):
        looking.show(frame, ["x"])


def test_boxes_are_drawn_where_they_are():
    frame = frame_of(["[1,2,20,30]", "nothing"], [1.0, 0.0], "the $5 one, not the $6 or $x_ one")
    figure = looking.boxes(frame, columns=2)
    first, second = figure.axes
    assert [patch.get_bbox().extents.tolist() for patch in first.patches] == [[1, 2, 20, 30]] * 2
    assert len(second.patches) == 1  # the gold box alone
    assert "IoU 1.00 ✓" in first.get_xlabel() and "no box" in second.get_xlabel()
    frame.attrs["labels"] = {"r": "half of $5"}
    looking.boxes(frame).savefig(io.BytesIO())  # "$" is no formula
    with pytest.raises(UserError, match="asks for no boxes"):
        looking.boxes(frame.drop(columns="box"))


def test_the_contact_sheet_has_a_picture_of_every_benchmark(drawn, tmp_path):
    figure = looking.sheet(drawn)
    assert [axes.get_title() for axes in figure.axes] == drawn.benchmarks
    assert all(len(axes.images) == 1 for axes in figure.axes)
    save(figure, tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").width == 2 * 870
    with pytest.raises(UserError, match="asks about no picture"):
        looking.sheet(Plan("table3", "smoke", tmp_path))
    assert grounding.GOLD == "#000000"
