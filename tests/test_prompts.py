"""Calibration files made of columns' questions: as the harness puts them, without answers, the same for a seed."""

import base64
import csv
import json

import pytest
import yaml
from small_plan import ROOT, TABLE, score, smoke, write
from text_benchmarks import asked

from emkit.alignment.sources import JsonlSource
from emkit.errors import UserError
from emkit.schema import load_yaml
from eval import pipeline, prompts
from eval import profile as profiles
from eval.__main__ import main
from eval.items import lines
from eval.plan import Plan
from eval.vlm import client

TEXTS = {"Chat": ["AlpacaEval"], "Math": ["GSM8K", "MATH"], "Code": ["HumanEval", "MBPP"]}
PICTURES = {"VQA": ["VizWiz", "GQA"], "Chart": ["ChartQA"]}


def profile(backbone, folder, columns, **how):
    """The smoke profile with prompts of ``columns`` for its tasks."""
    data = yaml.safe_load((ROOT / f"eval/profiles/smoke/{backbone}.yaml").read_text(encoding="utf-8"))
    experts = {name: path for name, path in data["models"]["experts"].items() if name in columns}
    data["models"] |= {"experts": experts, "mixture": None}
    files = {task: str(folder / "files" / f"{task}.jsonl") for task in columns}
    data["calibration"] = {"source": "jsonl", "samples": 2, "response_tokens": 1, "files": files}
    data["methods"] = {}
    return data | {"prompts": {"columns": dict(columns), **how}, "leave_out": [], "sources": {}, "scales": {}}


def plan(backbone, folder, columns, **how):
    rows = [{"id": "base", "label": "Base", "method": "checkpoint", "model": "base"}]
    table = {"title": "Table 1", "columns": [columns[next(iter(columns))][0]], "rows": rows}
    return Plan(*write(folder, table, profile(backbone, folder, columns, **how)), folder / "results")


def run(given):
    arguments = [str(given.path), "--profile", str(given.profile_path), "--results", str(given.home.parent)]
    assert main(["prompts", *arguments]) == 0
    return {task: JsonlSource({task: file}) for task, file in given.profile.calibration.files.items()}


def said(source, task):
    return [json.loads(line) for line in source.files[task].read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    made = plan("mistral", tmp_path_factory.mktemp("texts"), TEXTS, each=7)
    return made, run(made)


@pytest.mark.parametrize("task", TEXTS)
def test_a_text_is_what_the_harness_asks(task, texts):
    made, sources = texts
    protocol, data = prompts._protocol(made), made.run / "data" / "prompts"
    expected = {}
    for name in TEXTS[task]:
        for row in lines.rows(data, protocol.columns[name]):
            expected[f"{name}/{row['index']}"] = asked(name, row)
    found = {line["of"]: line["prompt"] for line in said(sources[task], task)}
    assert found.items() <= expected.items() and len(found) == min(7, len(set(expected.values())))
    assert [set(line) for line in said(sources[task], task)] == [{"prompt", "of"}] * len(found)
    drawn = list(sources[task].items(task, seed=0))
    assert len(drawn) == len(found) and all(item.image is None for item in drawn)


def test_columns_take_turns(texts):
    of = [line["of"].split("/")[0] for line in said(texts[1]["Math"], "Math")]
    assert of[:4] == ["GSM8K", "MATH", "GSM8K", "MATH"]


def test_what_is_current_is_left_alone_and_another_seed_draws_others(texts, tmp_path):
    made, _ = texts
    folder = prompts.folder(made)
    before = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.iterdir()}
    run(made)
    assert {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.iterdir()} == before
    again = {task: said(source, task) for task, source in run(plan("mistral", tmp_path, TEXTS, each=7)).items()}
    assert again == {task: said(source, task) for task, source in texts[1].items()}
    other = run(plan("mistral", tmp_path, TEXTS, each=7, seed=1))
    assert said(other["Math"], "Math") != again["Math"]


def test_a_file_that_was_changed_is_somebody_s_and_not_written_over(tmp_path):
    made = plan("mistral", tmp_path, {"Code": ["MBPP"]}, each=2)
    run(made)
    file = prompts.folder(made) / "Code.jsonl"
    file.write_text('{"prompt": "mine"}\n')
    assert not prompts.are_current(made)
    with pytest.raises(UserError, match=r"Code\.jsonl is not one that emkit made here, or was changed since: move it"):
        prompts.make(made)
    assert file.read_text() == '{"prompt": "mine"}\n'
    file.unlink()
    prompts.make(made)
    assert prompts.are_current(made)


def test_the_folder_of_another_profile_or_person_is_left_alone(tmp_path):
    made = plan("mistral", tmp_path, {"Code": ["MBPP"]}, each=2)
    run(made)
    data = yaml.safe_load(made.profile_path.read_text())
    (tmp_path / "copy").mkdir()
    other = type(made)(
        *write(tmp_path / "copy", yaml.safe_load(made.path.read_text()), data | {"name": "copy"}), tmp_path
    )
    assert not prompts.are_current(other)
    with pytest.raises(UserError, match="holds the prompts of the profile smoke/mistral: name another folder"):
        prompts.make(other)
    for content in ("{}", "[]", "7", "not json", '{"files": [], "key": 1, "profile": ""}'):
        (prompts.folder(made) / prompts.MANIFEST).write_text(content)
        assert not prompts.are_current(made)
        with pytest.raises(UserError, match="is not one that emkit made here"):
            prompts.make(made)


def test_rows_that_were_fitted_on_files_to_be_made_anew_are_looked_at_again(tmp_path):
    made = plan("mistral", tmp_path, {"Code": ["MBPP"]}, each=2)
    rows = [
        {"id": "base", "label": "Base", "method": "checkpoint", "model": "base"},
        {"id": "em", "label": "Expert Merging", "method": "expert_merging", "scale": None},
    ]
    data = yaml.safe_load(made.profile_path.read_text()) | {"scales": {"task_arithmetic": 0.3}}
    table = yaml.safe_load(made.path.read_text()) | {"rows": [{k: v for k, v in row.items() if v} for row in rows]}
    made = type(made)(*write(tmp_path, table, data), tmp_path / "results")
    run(made)
    data_key = made.data("evaluation")
    data_key.mkdir(parents=True)
    made.manifest("evaluation").write_text(json.dumps({"benchmarks": {"MBPP": {"sha256": "x"}}, "files": {}}))
    (data_key / "key").write_text(made.data_key("evaluation"))
    made.prompts_stamp.parent.mkdir(parents=True, exist_ok=True)
    for job in made.jobs:
        score(made, job, "MBPP", 1.0)
        made.stamp(job).parent.mkdir(parents=True, exist_ok=True)
        made.stamp(job).write_text("")
    pipeline.prune(made)
    assert made.prompts_stamp.is_file() and all(made.stamp(job).is_file() for job in made.jobs)
    (prompts.folder(made) / "Code.jsonl").unlink()
    pipeline.prune(made)
    assert not made.prompts_stamp.exists()
    assert {job.row: made.stamp(job).is_file() for job in made.jobs} == {"base": True, "em": False}


def test_a_picture_is_the_set_s_own_file(tmp_path):
    made = plan("internvl", tmp_path, PICTURES, each=3)
    sources = run(made)
    data, protocol = made.run / "data" / "prompts", prompts._protocol(made)
    for task, columns in PICTURES.items():
        for line in said(sources[task], task):
            assert set(line) == {"image", "prompt", "of"}
            name, _, index = line["of"].partition("/")
            assert name in columns
            with open(data / protocol.columns[name].file, encoding="utf-8", newline="") as file:
                csv.field_size_limit(2**31 - 1)
                (row,) = [row for row in csv.DictReader(file, delimiter="\t") if row["index"] == index]
            assert (sources[task].files[task].parent / line["image"]).read_bytes() == base64.b64decode(row["image"])
            texts = {prompt.index: prompt.text for prompt in client.prompts(data, protocol.columns[name])}
            assert line["prompt"] == texts[index] + protocol.columns[name].suffix
            assert row["answer" if "answer" in row else "answers"] not in line
        assert len(list(sources[task].items(task, seed=1))) == 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data["prompts"]["columns"].pop("VQA"), "prompts.columns: 'VQA' has to have columns here"),
        (lambda data: data["prompts"]["columns"].update(VQA=["VizViz"]), "unknown benchmark 'VizViz': .*VizWiz"),
        (lambda data: data["calibration"]["files"].update(VQA="elsewhere/VQA.jsonl"), "files of one folder"),
        (lambda data: data["calibration"].update(source="zoo"), "needs source jsonl"),
        (lambda data: data["prompts"].update(each=0), "each"),
    ],
)
def test_what_cannot_be_made_is_said_when_the_profile_is_read(tmp_path, change, words):
    data = profile("internvl", tmp_path, PICTURES)
    change(data)
    _, path = write(tmp_path, TABLE, data)
    with pytest.raises(UserError, match=words):
        profiles.load(path)


def test_a_profile_without_prompts_says_so(tmp_path, capsys):
    paths = write(tmp_path, TABLE, smoke())
    assert main(["prompts", str(paths[0]), "--profile", str(paths[1]), "--results", str(tmp_path / "results")]) == 2
    assert "has no `prompts`: its calibration files are yours to make" in capsys.readouterr().err


@pytest.mark.parametrize("backbone", ["internvl", "qwen2_vl", "mistral"])
def test_the_paper_s_profiles_ask_each_expert_of_its_own_columns(backbone):
    path = profiles.find("paper", backbone)
    found = profiles.load(path)
    groups = {name: load_yaml((ROOT / f"eval/columns/{name}.yaml").read_text(), name)["group"] for name in _all(found)}
    assert set(found.prompts.columns) == set(found.models.experts)
    assert all(groups[name] == task for task, names in found.prompts.columns.items() for name in names)


def _all(found):
    return [name for names in found.prompts.columns.values() for name in names]
