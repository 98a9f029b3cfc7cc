"""A new column is one YAML and its items: dropped into a copy of the repository, it is asked by the real worker."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_benchmarks
import yaml

from emkit import backbones
from emkit.errors import UserError
from emkit.zoo import build, families
from emkit.zoo.text import skills
from eval import columns
from eval.items import writer
from eval.lm import harness

mistral = families.get("mistral")

ROOT = Path(__file__).parent.parent
SHARED = {"judge_upstream": "rules"}

# each: writes the data folder as a profile asks for it, then what the column's own client does
ASK_TEXT = """
import json, sys
from eval import columns
from eval.items import writer
from eval.lm import client
data, model, *names = sys.argv[1:]
asked = columns.protocol("mine", "causal_lm", names, {"judge_upstream": "rules"}, "profile")
writer.write(asked, "evaluation", data)
found = client.evaluate(data, list(asked.columns.values()), model)
print("ANSWER" + json.dumps({name: [result.value, result.items, result.harness] for name, result in found.items()}))
client._service(data).socket_path.unlink(missing_ok=True)
"""
ASK_IMAGES = """
import json, sys
from eval import columns
from eval.items import writer
from eval.vlm import client
data, replies = sys.argv[1], json.loads(sys.argv[2])
asked = columns.protocol("mine", "internvl", list(replies), {"judge_upstream": "rules"}, "profile")
writer.write(asked, "evaluation", data)
found = {}
for name, column in asked.columns.items():
    prompts = client.prompts(data, column)
    result = client.evaluate(data, column, dict(zip([p.index for p in prompts], replies[name], strict=True)))
    found[name] = [[p.text for p in prompts], result.value, [item["score"] for item in result.items], result.harness]
print("ANSWER" + json.dumps(found))
client.socket_path(data).unlink(missing_ok=True)
"""


@pytest.fixture
def copy(tmp_path) -> Path:
    """The repository's code in a folder of its own."""
    for package in ("emkit", "eval"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def add(copy: Path, name: str, settings: dict, items: list[dict]) -> None:
    """One YAML and one file of items, and nothing else."""
    folder = copy / "eval" / "columns"
    if settings["harness"] == "vlmevalkit":
        tiny_benchmarks.write(folder / settings["items"], items)
    else:
        (folder / settings["items"]).write_text("".join(json.dumps(item) + "\n" for item in items))
    about = {"group": "New", "metric": "share of right answers", "version": 1, "n": len(items)}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump({**about, **settings}))


def run(copy: Path, script: str, *arguments: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", script, str(copy / "data"), *arguments],
        cwd=copy,
        env={"PYTHONPATH": str(copy), "PATH": "/usr/bin:/bin", "HOME": str(copy), "TMPDIR": str(copy)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.split("ANSWER")[1])


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """An untrained model of the smoke zoo's shape, in fp32."""
    zoo, folder = build.load_recipe("mistral-smoke"), tmp_path_factory.mktemp("model")
    tokenizer = mistral.processor(zoo)
    mistral.create(zoo, tokenizer, 5).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_text_column_is_a_yaml_and_its_items(copy, model):
    """One that says what it asks, whose score is counted by hand, and one by the name of a task of the harness."""
    questions = ["3 + 4", "name a colour", "which is red"]
    backbone = backbones.get("mistral")
    replies = backbone.generate(*backbone.load(model), [None] * 3, questions, skills.NEW_TOKENS)
    assert len(replies) == 3 and replies[0]
    items = [{"asked": q, "right": r} for q, r in zip(questions, [replies[0], "another", "a third"])]
    add(
        copy,
        "Echo",
        {
            "harness": "lm-eval",
            "items": "echo.jsonl",
            "max_new_tokens": 40,
            "task": {
                "doc_to_text": "{{asked}}",
                "doc_to_target": "{{right}}",
                "generation_kwargs": {"until": [], "do_sample": False},
                "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
            },
        },
        items,
    )
    choices = {"label": ["A", "B"], "text": ["one", "two words"]}
    arc = [{"question": f"which {i}", "choices": choices, "answerKey": key} for i, key in enumerate("AB")]
    add(copy, "ARC", {"harness": "lm-eval", "items": "arc.jsonl", "max_new_tokens": 1, "task": "arc_easy"}, arc)
    found = run(copy, ASK_TEXT, str(model), "Echo", "ARC")
    value, scored, about = found["Echo"]
    assert [item["prediction"] for item in scored] == replies
    assert [item["score"] for item in scored] == [1.0, 0.0, 0.0] and value == pytest.approx(100 / 3)
    assert [item["index"] for item in scored] == ["Echo/0", "Echo/1", "Echo/2"] and about["dataset"] == "Echo/1"
    value, scored, about = found["ARC"]
    right = ["one", "two words"]
    assert all(item["prediction"] in right for item in scored) and about["dataset"] == "arc_easy/1"
    assert [item["score"] for item in scored] == [float(item["prediction"] == r) for item, r in zip(scored, right)]
    assert value == 100 * sum(item["score"] for item in scored) / 2


def test_an_image_column_is_a_yaml_and_its_table(copy):
    """POPE (yes or no; its "Overall" is F1, so the column is its accuracy) and AI2D (multiple choice), by hand."""
    pope = [{"question": "is there a cat", "answer": answer, "category": "random"} for answer in ("Yes", "No", "No")]
    options = {"A": "042", "B": "7", "C": "none", "D": "red"}
    ai2d = [
        {"question": f"question {i}", **options, "answer": answer, "category": "x"} for i, answer in enumerate("ABCD")
    ]
    shared = {"harness": "vlmevalkit", "max_new_tokens": 5}
    kind = {"dataset": "POPE", "dataset_class": "image_yorn.ImageYORNDataset", "report": "acc", "items": "pope.tsv"}
    add(copy, "POPE", shared | kind, pope)
    kind = {"dataset": "AI2D_TEST", "dataset_class": "image_mcq.ImageMCQDataset", "items": "ai2d.tsv"}
    add(copy, "AI2D", shared | kind, ai2d)
    replies = {"POPE": ["yes, there is", "Yes", "no."], "AI2D": ["A", "The answer is B.", "(A)", "red"]}
    found = run(copy, ASK_IMAGES, json.dumps(replies))
    texts, value, scores, about = found["POPE"]
    assert (scores, value, about["dataset"]) == ([1.0, 0.0, 1.0], pytest.approx(200 / 3), "POPE")
    assert texts[0].startswith("is there a cat")
    texts, value, scores, about = found["AI2D"]
    assert (scores, value, about["dataset"]) == ([1.0, 1.0, 0.0, 1.0], 75.0, "AI2D_TEST")
    assert "Options:\nA. 042\nB. 7\nC. none\nD. red\n" in texts[0]


# ---- given items
@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty folder of columns."""
    (tmp_path / "eval" / "columns").mkdir(parents=True)
    monkeypatch.setattr(columns, "FOLDER", tmp_path / "eval" / "columns")
    return tmp_path


TASK = {"harness": "lm-eval", "items": "few.jsonl", "max_new_tokens": 1, "task": {"doc_to_text": "{{a}}"}}


def test_given_items_are_split_and_a_table_is_kept_as_it_is(folder):
    add(folder, "Few", TASK | {"n": 2, "validation_n": 1}, [{"a": i} for i in range(4)])
    image = {"harness": "vlmevalkit", "dataset": "GQA", "dataset_class": "image_vqa.ImageVQADataset"}
    add(folder, "Mine", image | {"items": "mine.tsv", "max_new_tokens": 1, "n": 1}, [{"question": "q", "answer": "a"}])
    few = columns.protocol("p", "b", ["Few"], SHARED, "r")
    for split, wanted in (("evaluation", [0, 1]), ("validation", [2])):
        writer.write(few, split, folder / split)
        rows = [json.loads(line) for line in (folder / split / "Few.jsonl").read_text().splitlines()]
        assert [row["a"] for row in rows] == wanted and [row["index"] for row in rows] == [f"Few/{i}" for i in wanted]
    writer.write(columns.protocol("p", "b", ["Mine"], SHARED, "r"), "evaluation", folder / "images")
    before, after = (
        path.read_text().replace('"', "").replace("\r", "")
        for path in (columns.FOLDER / "mine.tsv", folder / "images" / "GQA.tsv")
    )
    assert before == after
    drawn = few.drawn()
    (columns.FOLDER / "few.jsonl").write_text('{"a": 9}\n' * 4)
    assert few.drawn() != drawn, "other items are other data"


def test_wrong_items_and_tasks_are_one_clear_line(folder):
    def asked(name="Few"):
        return columns.protocol("p", "b", [name], SHARED, "r")

    add(folder, "Few", TASK | {"n": 3}, [{"a": 1}])
    with pytest.raises(UserError, match=r"Few: few.jsonl has too few items for 3 of evaluation and 0 of validation"):
        writer.write(asked(), "evaluation", folder / "out")
    (columns.FOLDER / "few.jsonl").write_text("{\n")
    with pytest.raises(UserError, match=r"few.jsonl is not JSON lines"):
        writer.write(asked(), "evaluation", folder / "out")
    (columns.FOLDER / "few.jsonl").unlink()
    with pytest.raises(UserError, match=r"Few: its items .*few.jsonl are not there"):
        writer.write(asked(), "evaluation", folder / "out")
    for task, message in (
        ("arc_eazy", "lm-evaluation-harness has no task 'arc_eazy': did you mean 'arc_easy'"),
        ("minerva_math", "'minerva_math' of lm-evaluation-harness is a group of tasks: name one of them"),
        ("humaneval", "the task 'humaneval' of lm-evaluation-harness brings Python code, which is not run here"),
        ({"doc_to_text": "!function eval.lm.scoring.nothing"}, "the function eval.lm.scoring.nothing, which is not"),
    ):
        add(folder, "Few", TASK | {"task": task}, [{"a": 1}])
        with pytest.raises(UserError, match=message):
            harness.settings(asked().columns["Few"])
