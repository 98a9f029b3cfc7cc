"""The notebook on answers: its sets of items by hand, and the notebook with its solutions, with scores and without."""

import io
import re
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest

from eval import scores
from eval.lessons import answers
from eval.looking import sources
from eval.places import Job
from eval.plan import Plan

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "06-look-at-the-answers.ipynb"


@pytest.fixture
def frame():
    """Five items of three rows; "c" has no score of the last."""
    values = {"a": [1, 0, 0, 0.3, 1], "b": [0, 0, 1, 0.6, 1], "c": [1, 0, 0, 0.0, np.nan]}
    formed = {"a": [True, False, True, True, True], "b": [True] * 5, "c": [True, False, False, True, None]}
    data = {"index": list("vwxyz"), "question": ["?"] * 5, "picture": [None] * 5, "gold": [("g",)] * 5}
    for row, scored in values.items():
        data |= {f"{row} prediction": ["p"] * 5, f"{row} score": scored, f"{row} well-formed": formed[row]}
    made = pd.DataFrame(data)
    made.attrs = {"benchmark": "X", "form": "a form", "labels": {"a": "A", "b": "B", "c": "C"}}
    return made


def test_a_score_is_the_share_that_can_be_read_times_the_score_of_that(frame):
    table = answers.readability(frame)
    assert table.loc["A"].tolist() == pytest.approx([46.0, 80.0, 57.5])
    assert table.loc["C"].tolist() == pytest.approx([25.0, 50.0, 50.0])  # of the four that it has a score of
    product = table["well-formed"] * table["score of the well-formed"] / 100
    assert product.tolist() == pytest.approx(table["score"].tolist())
    said = answers.lost_format(frame, 90).data
    assert "X asks for a form" in said and "**A**: 80 % well-formed" in said and "**B**" not in said
    assert "The other rows (1)" in said
    assert "at least 40 %" in answers.lost_format(frame, 40).data


def test_sets_of_items(frame):
    def found(items):
        return "".join(items["index"])

    assert found(answers.missed_by_all(frame, ["a", "b", "c"])) == "w"
    assert found(answers.missed_by_all(frame, ["a", "not run"])) == "wxy"
    assert found(answers.only(frame, "b", ["a", "b", "c"])) == "xy"
    assert found(answers.right_where_wrong(frame, "b", "a")) == "xy"
    assert found(answers.right_where_wrong(frame, "a", "b")) == "v"
    assert found(answers.unreadable(frame, "c")) == "wx"
    for nothing in (
        answers.missed_by_all(frame, ["not run"]),
        answers.only(frame, None, ["a"]),
        answers.only(frame, "a", []),
        answers.right_where_wrong(frame, "a", "not run"),
        answers.unreadable(frame, "not run"),
    ):
        assert len(nothing) == 0 and list(nothing) == list(frame)


def test_a_row_that_was_not_run_is_missing_and_not_zero(frame, monkeypatch):
    plan = SimpleNamespace(benchmarks=["X"], entry=lambda row: SimpleNamespace(label=row.upper()))
    monkeypatch.setattr(answers.looking, "items", lambda *_: frame)
    monkeypatch.setattr(answers, "cast", lambda *_: ["a", "b", "c"])
    monkeypatch.setattr(answers, "merges", lambda _: ["b", "c"])
    monkeypatch.setattr(answers, "expert", lambda *_: "a")
    # b and c both miss w alone; v, which a gets, c gets too; b without a: x and y; a without b: v
    assert answers.counts(plan, "b", "a").loc["X"].tolist() == [5, 1, 0, 2, 1]
    monkeypatch.setattr(answers, "expert", lambda *_: "not run")
    some = answers.counts(plan, "b", "not run either")
    assert some.loc["X"].isna().tolist() == [False, False, True, True, True]
    answers.balance(some).savefig(io.BytesIO())


def test_figures_show_their_numbers(frame):
    bars = answers.outcomes(frame).axes[0].containers
    assert [bar.get_width() for bar in bars[0]] == pytest.approx([46.0, 52.0, 25.0])
    assert [sum(bars[part][row].get_width() for part in range(3)) for row in range(3)] == pytest.approx([100] * 3)
    table = pd.DataFrame([[200, 9, 9, 30, 10]], ["X"], ["items", "m", "o", "only A", "only B"])
    figure = answers.balance(table)
    ours, theirs = figure.axes[0].containers
    assert (ours[0].get_width(), theirs[0].get_width()) == (15.0, -5.0)
    assert figure.axes[0].lines[0].get_xdata().tolist() == [10.0]
    table[["only A", "only B"]] = 0
    for figure in (answers.balance(table), answers.outcomes(frame[["index"]])):
        figure.savefig(io.BytesIO())  # nothing to show is no error


def test_rows_worth_a_look():
    plan = Plan("table1", "mini")
    assert answers.cast(plan, "RefCOCO")[:3] == ["base", "grounding", "weight_average"]
    assert not {"mixture", "vqa", "grounding_reset"} & set(answers.cast(plan, "RefCOCO"))
    made = pd.DataFrame(columns=["ties score", "vqa score", "base score", "tsv score"])
    made.attrs = {"benchmark": "GQA"}
    assert answers.few(made, plan, "ties", "base", "nothing") == ["base", "vqa", "ties"]
    assert answers.expert(Plan("table1", "smoke"), "RefCOCO") is None  # which smoke leaves out


# --------------------------------------------------------------------------------------------- the notebook
def run(**given) -> dict:
    """Run the notebook's cells, then every solution, in one namespace."""
    notebook, space = nbformat.read(NOTEBOOK, as_version=4), {}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, str(NOTEBOOK), "exec"), space)
        if "parameters" in cell.metadata.get("tags", []):
            assert set(given) <= set(space)
            space.update(given)
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    solutions = re.findall(r"<details>.*?```python\n(.*?)```.*?</details>", prose, re.DOTALL)
    assert len(solutions) == 3
    for solution in solutions:
        exec(compile(solution, "solution", "exec"), space)
    return space


@pytest.mark.parametrize("table, benchmark", [("table1", "RefCOCO"), ("table3", "GSM8K")])
def test_the_notebook_runs_without_scores_and_with_some(table, benchmark, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = {"table": table, "benchmark": benchmark, "profile": "smoke", "results": str(tmp_path)}
    space = run(**given)
    said = capsys.readouterr().out
    assert f"{benchmark}: no row of Table {table[-1]} has been run; `" in said
    assert len(space["frame"]) == 10

    plan = space["plan"]
    for number, row in enumerate(("base", "task_arithmetic", "tsv", "expert_merging")):
        for name in plan.benchmarks:
            items = sources.read(plan, name)
            told = [item.gold[0] if (at + number) % 2 else "word [1" for at, item in enumerate(items)]
            made = [
                {"index": item.index, "prediction": text, "score": float(text != "word [1"), "groups": []}
                for item, text in zip(items, told)
            ]
            job = Job(row, plan.seeds(row)[0])
            about = plan.expected(plan.resolved(job), name) | {"row": row, "seed": job.seed, "benchmark": name}
            scores.write_scored(plan.cell(job, name), made, **about)
    space = run(**given)
    said = capsys.readouterr().out
    assert "rows left out (not run yet: " in said
    assert len(space["won"]) == 0 and len(space["missed"]) == 0  # both answer the odd items; TSV the even ones
    assert "both wrong: 50.0 %; if independent: 25.0 %" in said
    assert "50.0 % as it is, 100.0 % if every answer could be read" in said


def test_cells_are_short_and_figures_explained():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    lines = [len(c.source.splitlines()) for c in notebook.cells if c.cell_type == "code"]
    assert sorted(lines)[len(lines) // 2] <= 6 and max(lines) <= 8
    assert not [c for c in notebook.cells if c.cell_type == "code" and re.search(r"\b(def|class|lambda) ", c.source)]
    assert len({c.id for c in notebook.cells}) == len(notebook.cells)
