"""The one notebook runner: typed parameters, and an output only of a run that succeeded."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbclient
import nbformat
import pytest
from as_committed import text as committed_text
from small_plan import small_plan

from emkit.errors import UserError
from eval import committed, notebooks, papermill_runner, parameters, pipeline, render, scale
from eval.__main__ import main
from eval.plan import Plan

ROOT = Path(__file__).resolve().parent.parent

PARAMETERS = (
    "count: int = 3  # how many\nrate: float = 0.5  # how fast\nsmall: bool = True  # or large\nname: str = 'a'"
)


def notebook(folder, *cells: str, parameters: str = PARAMETERS):
    found = nbformat.v4.new_notebook()
    first = nbformat.v4.new_code_cell(parameters)
    first.metadata["tags"] = ["parameters"]
    found.cells = [first, *(nbformat.v4.new_code_cell(cell) for cell in cells)]
    path = folder / "source.ipynb"
    nbformat.write(found, path)
    return path


def outputs(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(out.get("text", "")) for cell in cells if cell["cell_type"] == "code" for out in cell["outputs"]]


def test_parameters_arrive_with_their_types_and_the_run_repeats_byte_for_byte(tmp_path):
    source = notebook(tmp_path, "print(repr((count, rate, small, name)))")
    given = {"count": "7", "rate": "1e-5", "small": "false", "name": "007"}
    for out in ("one.ipynb", "two.ipynb"):
        papermill_runner.run(source, tmp_path / out, given, key="k")
    assert outputs(tmp_path / "one.ipynb") == ["(7, 1e-05, False, '007')\n"]
    assert (tmp_path / "one.ipynb").read_bytes() == (tmp_path / "two.ipynb").read_bytes()
    assert papermill_runner.is_current(source, tmp_path / "one.ipynb", given, "k")
    assert not papermill_runner.is_current(source, tmp_path / "one.ipynb", given, "other scores")
    assert not papermill_runner.is_current(source, tmp_path / "one.ipynb", given | {"count": "8"}, "k")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"cout": 1}, "no parameter 'cout'"),
        ({"count": "1.5"}, "'count' is '1.5', not of type int"),
        ({"count": True}, "'count' is True, not of type int"),
        ({"small": "no"}, "'small' is 'no', not of type bool"),
        ({"small": 1}, "'small' is 1, not of type bool"),
        ({"rate": "fast"}, "'rate' is 'fast', not of type float"),
        ({"name": 1}, "'name' is 1, not of type str"),
    ],
)
def test_unknown_or_mistyped_parameters_are_errors(tmp_path, given, said):
    source = notebook(tmp_path, "print(1)")
    with pytest.raises(UserError, match=said):
        papermill_runner.run(source, tmp_path / "out.ipynb", given)
    assert not (tmp_path / "out.ipynb").exists()


def test_saving_a_notebook_in_jupyter_does_not_make_it_another(tmp_path):
    """Lab writes the kernel's name and version, counts, ids and outputs; what a cell says or is tagged is content."""
    source, out = notebook(tmp_path, "print(count)"), tmp_path / "out.ipynb"
    papermill_runner.run(source, out, {}, key="k")
    saved = nbformat.read(source, as_version=4)
    saved.metadata |= {"kernelspec": {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}}
    saved.metadata |= {"language_info": {"name": "python", "version": "3.11.99"}}
    for number, cell in enumerate(saved.cells):
        cell.id, cell.execution_count = f"other-{number}", number + 7
        cell.outputs = [nbformat.v4.new_output("stream", text="3\n")]
        cell.metadata |= {"scrolled": True, "trusted": True}
    nbformat.write(saved, source)
    assert papermill_runner.is_current(source, out, {}, "k")
    saved.cells[1].metadata["tags"] = ["hide-input"]
    nbformat.write(saved, source)
    assert not papermill_runner.is_current(source, out, {}, "k")
    saved.cells[1].metadata["tags"] = []
    saved.cells[1].source = "print(count + 0)"
    nbformat.write(saved, source)
    assert not papermill_runner.is_current(source, out, {}, "k")


def test_an_executed_notebook_that_was_changed_or_has_no_key_is_not_current(tmp_path):
    source, out = notebook(tmp_path, "print(count)"), tmp_path / "out.ipynb"
    papermill_runner.run(source, out, {}, key="k")
    executed, key = out.read_text(encoding="utf-8"), out.with_suffix(".key").read_text(encoding="utf-8")
    out.write_text(executed.replace("3\\n", "4\\n"), encoding="utf-8")
    assert not papermill_runner.is_current(source, out, {}, "k")
    out.write_text(executed, encoding="utf-8")
    for damaged in ("", "[]", "{}"):
        out.with_suffix(".key").write_text(damaged, encoding="utf-8")
        assert not papermill_runner.is_current(source, out, {}, "k")
    out.with_suffix(".key").write_text(key, encoding="utf-8")
    assert papermill_runner.is_current(source, out, {}, "k")


def test_an_executed_notebook_says_nothing_of_what_it_rests_on(tmp_path):
    """Two machines that show the same leave the same bytes, whatever the scores' other fields are."""
    source = notebook(tmp_path, "print(count)")
    for name, key in (("one", "k"), ("two", "another")):
        papermill_runner.run(source, tmp_path / f"{name}.ipynb", {}, key)
    assert (tmp_path / "one.ipynb").read_bytes() == (tmp_path / "two.ipynb").read_bytes()
    found = nbformat.read(tmp_path / "one.ipynb", as_version=4)
    assert found.metadata.language_info == {"name": "python"} and set(found.metadata) <= {"kernelspec", "language_info"}


def test_random_names_and_places_in_memory_do_not_make_another_notebook(tmp_path):
    styled = "import pandas as pd\npd.DataFrame({'a': [0.5]}).style.format('{:.1f}')"
    source = notebook(tmp_path, styled, "object()", "import os\nos.environ['OMP_NUM_THREADS']")
    for name in ("one", "two"):
        papermill_runner.run(source, tmp_path / f"{name}.ipynb", {})
    assert (tmp_path / "one.ipynb").read_bytes() == (tmp_path / "two.ipynb").read_bytes()
    found = nbformat.read(tmp_path / "one.ipynb", as_version=4)
    html, plain, threads = (cell.outputs[0].data for cell in found.cells[-3:])
    assert html["text/html"].count("T_01") > 3 and plain["text/plain"] == "<object>" and threads["text/plain"] == "'1'"


def test_the_parameters_are_shown_once_with_the_values_of_the_run(tmp_path):
    source = notebook(tmp_path, "print(repr(name))", parameters=PARAMETERS + "\nlong: str = (\n    'ä'\n)  # two lines")
    papermill_runner.run(source, tmp_path / "out.ipynb", {"count": 7, "name": 'sai"d', "small": False, "long": "ö'"})
    shown = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    assert len(shown.cells) == 2 and outputs(tmp_path / "out.ipynb")[-1] == "'sai\"d'\n"
    assert shown.cells[0].source.splitlines() == [
        "count: int = 7  # how many",
        "rate: float = 0.5  # how fast",
        "small: bool = False  # or large",
        'name: str = "sai\\"d"',
        "long: str = (",
        '    "ö\'"',
        ")  # two lines",
    ]


def test_what_needs_a_kernel_is_not_kept_but_the_picture_that_stands_in_for_it_is(tmp_path):
    shows = (
        "from IPython.display import display\nwidget = {'application/vnd.jupyter.widget-view+json': {'model_id': 'x'}"
    )
    alone = f"{shows}, 'text/plain': 'HBox()'}}\ndisplay(widget, raw=True)"
    both = f"{shows}, 'image/png': b'p', 'text/plain': 'a slider'}}\ndisplay(widget, raw=True)"
    papermill_runner.run(notebook(tmp_path, alone, both), tmp_path / "out.ipynb", {})
    _, first, second = nbformat.read(tmp_path / "out.ipynb", as_version=4).cells
    assert first.outputs == [] and set(second.outputs[0].data) == {"image/png", "text/plain"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("small = 'false'\nrate = '1e-5'\ncount = 7\nname = 'b'", (7, 1e-5, False, "b")),
        ("rate = 1\ncount = '7'", (7, 1.0, True, "a")),
        ("count = 1.5", "parameter 'count' is 1.5, not of type int"),
        ("name = 7", "parameter 'name' is 7, not of type str"),
        ("small = 'no'", "parameter 'small' is 'no', not of type bool"),
    ],
)
def test_what_papermill_itself_puts_in_is_checked_when_the_desk_is_made_ready(given, said):
    """papermill's own cell stands behind the parameters: `-p small false` is the text "false" there."""
    namespace: dict = {}
    exec(PARAMETERS, namespace)
    exec(given, namespace)
    if isinstance(said, str):
        with pytest.raises(UserError, match=re.escape(said)):
            parameters.recheck(namespace)
    else:
        parameters.recheck(namespace)
        found = tuple(namespace[name] for name in ("count", "rate", "small", "name"))
        assert found == said and list(map(type, found)) == [int, float, bool, str]


def test_papermill_as_its_documentation_calls_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    source = notebook(tmp_path, "from eval import desk; desk.ready(); print(repr((count, rate, small, name)))")
    found = nbformat.read(source, as_version=4)
    found.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    nbformat.write(found, source)
    given = ["-p", "count", "7", "-p", "small", "false", "-p", "rate", "1e-5", "-p", "name", "b"]
    command = [sys.executable, "-m", "papermill", str(source), str(tmp_path / "out.ipynb"), *given]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert outputs(tmp_path / "out.ipynb")[-1] == "(7, 1e-05, False, 'b')\n"


def test_a_run_says_whether_it_left_what_is_committed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = [Path("a.md"), Path("b.csv")]
    for path in paths:
        path.write_text("1", encoding="utf-8")
    assert committed.said(paths) == ""  # no repository
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "a.md"], ["commit", "-qm", "a"]):
        subprocess.run([*git, *command], check=True)
    assert committed.said(paths[:1]) == " (same as committed)"
    assert committed.said(paths) == ""  # one that is not committed at all
    for text, command in (("2", ["status"]), ("2", ["add", "a.md"])):
        paths[0].write_text(text, encoding="utf-8")
        subprocess.run([*git, *command], check=True)
        assert committed.said(paths[:1]) == " (differs from the committed one: git diff HEAD -- a.md)"


@pytest.mark.parametrize("current", [True, False])
def test_what_draws_the_figure_in_another_way_makes_table_and_notebook_anew(tmp_path, monkeypatch, current):
    """Text alone does not show it: the figure beside the table is drawn by code that its notebook calls, too."""
    plan = SimpleNamespace(run=tmp_path, zoo_stamp=tmp_path / "zoo", scale_rows=[], jobs=[], benchmarks=[])
    plan.profile = SimpleNamespace(prompts=None)
    plan.csv, plan.notebook = tmp_path / "tables" / "t.csv", tmp_path / "notebooks" / "t.ipynb"
    plan.data_is_current = lambda split: True
    for path in (plan.csv, plan.csv.with_suffix(".png"), plan.notebook):
        path.parent.mkdir(exist_ok=True)
        path.write_text("x", encoding="utf-8")
    monkeypatch.setattr(pipeline.models, "are_there", lambda _: True)
    monkeypatch.setattr(pipeline.table_files, "is_current", lambda _: True)
    monkeypatch.setattr(pipeline.notebooks, "is_current", lambda _: current)
    pipeline.prune(plan)
    assert (plan.csv.is_file(), plan.notebook.is_file()) == (current, current)


def test_a_notebook_executed_by_itself_leaves_the_committed_table_as_it_is(tmp_path):
    plan = SimpleNamespace(home=tmp_path, name="t", csv=tmp_path / ".run" / "tables" / "t.csv")
    plan.notebook = tmp_path / ".run" / "notebooks" / "t.ipynb"
    for path in (plan.csv, plan.notebook, tmp_path / "tables" / "t.csv", tmp_path / "notebooks" / "t.ipynb"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("new" if ".run" in path.parts else "old", encoding="utf-8")
    published = [tmp_path / "tables" / "t.csv", tmp_path / "notebooks" / "t.ipynb"]
    pipeline.publish(plan, table=False)
    assert [path.read_text() for path in published] == ["old", "new"]
    pipeline.publish(plan)
    assert [path.read_text() for path in published] == ["new", "new"]


def test_an_int_is_a_float_but_not_the_other_way_round():
    known = {"rate": ("float", 0.5), "count": ("int", 1)}
    assert parameters.checked({"rate": 2}, known, "n") == {"rate": 2.0}
    with pytest.raises(UserError):
        parameters.checked({"count": 2.0}, known, "n")


@pytest.mark.parametrize("cell", ["count = 3", "count: list = []", "count: int", "import os"])
def test_a_parameters_cell_without_types_is_an_error(tmp_path, cell):
    source = notebook(tmp_path, parameters=cell)
    with pytest.raises(UserError, match="name: type = default"):
        papermill_runner.run(source, tmp_path / "out.ipynb", {})


def test_a_notebook_without_parameters_cell_is_an_error(tmp_path):
    nbformat.write(nbformat.v4.new_notebook(), tmp_path / "plain.ipynb")
    with pytest.raises(UserError, match="0 cells tagged 'parameters'"):
        papermill_runner.run(tmp_path / "plain.ipynb", tmp_path / "out.ipynb", {})


def test_what_is_no_notebook_is_an_error(tmp_path):
    (tmp_path / "bad.ipynb").write_text("not json", encoding="utf-8")
    for name in ("bad.ipynb", "absent.ipynb"):
        with pytest.raises(UserError, match="cannot be read as a notebook"):
            papermill_runner.run(tmp_path / name, tmp_path / "out.ipynb", {})


def test_a_failing_notebook_leaves_the_old_output_as_it_was(tmp_path):
    out = tmp_path / "out.ipynb"
    out.write_text("the last good one", encoding="utf-8")
    source = notebook(tmp_path, "print(1)", "1 / 0")
    with pytest.raises(UserError, match="ZeroDivisionError"):
        papermill_runner.run(source, out, {})
    assert out.read_text(encoding="utf-8") == "the last good one"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.ipynb", "source.ipynb"]


def test_an_output_does_not_say_where_the_repository_lies(tmp_path):
    source = notebook(tmp_path, "import os; print(os.getcwd() + '/eval/figures.py:1: UserWarning')")
    papermill_runner.run(source, tmp_path / "out.ipynb", {}, folder=tmp_path)
    assert outputs(tmp_path / "out.ipynb") == ["eval/figures.py:1: UserWarning\n"]


# ---- what a reader sees of an error
def without_scores(source, folder, results, more=""):
    """The outputs of a notebook that fails where Jupyter runs it in ``folder``."""
    found = nbformat.read(source, as_version=4)
    for cell in found.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source += f"\nresults = {str(results)!r}{more}"
    client = nbclient.NotebookClient(found, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    with pytest.raises(nbclient.exceptions.CellExecutionError):
        client.execute()
    return [out for cell in found.cells for out in cell.get("outputs", [])]


@pytest.mark.parametrize(("table", "folder"), [("table1", "."), ("table3", "notebooks"), ("table8", "notebooks")])
def test_run_all_without_scores_is_one_line_that_names_the_command(tmp_path, monkeypatch, table, folder):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    more = f"\ntable = {table!r}"
    source = ROOT / notebooks.source(Plan(table))
    outputs = without_scores(source, ROOT / folder, tmp_path / "results", more)
    [error] = [out for out in outputs if out["output_type"] == "error"]
    [line] = error["traceback"]
    assert error["ename"] == "UserError" and "\n" not in line
    assert "no score file" in line and f"-m eval reproduce {table} --profile mini" in line and str(ROOT) in line


def test_any_other_error_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    source = notebook(tmp_path, "from emkit.errors import UserError\nprint(1 / 0)")
    shown = re.sub(r"\033\[[0-9;]*m", "", "\n".join(without_scores(source, tmp_path, tmp_path)[-1]["traceback"]))
    assert "Traceback" in shown and "print(1 / 0)" in shown


def test_the_runner_says_what_the_notebook_says_and_leaves_no_output(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(ROOT)
    plan = Plan("table1", "mini", tmp_path / "results")
    with pytest.raises(UserError) as caught:
        notebooks.execute(plan)
    said = str(caught.value)
    assert said.startswith("notebooks/table.ipynb: cell ") and f"run `{plan.command}` in {ROOT}" in said
    assert "\n" not in said and not list(tmp_path.rglob("*.ipynb*"))


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_in_the_repository_hold_no_outputs_and_define_no_functions(path):
    assert papermill_runner.parameters(path)
    for cell in nbformat.reads(committed_text(path), as_version=4).cells:
        if cell.cell_type == "code":
            assert not cell.outputs and not cell.execution_count and "def " not in cell.source


@pytest.mark.parametrize(
    ("table", "profile", "results", "command"),
    [
        ("table1", "mini", "results", "make reproduce-table1"),
        ("table2", "mini", "results", "make reproduce-table2"),
        ("table1", "smoke", "results", "make reproduce-table1 PROFILE=smoke"),
        ("table3", "paper", "results", "make reproduce-table3 PROFILE=paper"),
        (
            "table3",
            "mini",
            "elsewhere",
            ".venv/bin/python -m eval reproduce table3 --profile mini --results elsewhere",
        ),
    ],
)
def test_the_command_is_the_one_that_makes_these_results(monkeypatch, table, profile, results, command):
    monkeypatch.chdir(ROOT)
    plan = Plan(table, profile, results)
    assert plan.command == command
    if command.startswith("make"):  # make itself says which table that is
        shown = subprocess.run([*command.split(), "--dry-run"], capture_output=True, text=True, check=True).stdout
        assert f"-m eval reproduce {table} --profile {profile} " in shown


def test_a_notebook_dropped_into_the_folder_runs_by_its_name(tmp_path, monkeypatch, capsys):
    (tmp_path / "notebooks").mkdir()
    typed = "profile: str = 'mini'\nresults: str = 'results'\ntimes: int = 2"
    notebook(tmp_path, "print(profile, results, times)", parameters=typed)
    (tmp_path / "source.ipynb").rename(tmp_path / "notebooks" / "07_mine.ipynb")
    monkeypatch.chdir(tmp_path)
    assert main(["notebook", "07_mine", "--profile", "smoke", "-p", "times", "3"]) == 0
    assert capsys.readouterr().out == "results/smoke/notebooks/07_mine.ipynb\n"
    assert outputs(tmp_path / "results" / "smoke" / "notebooks" / "07_mine.ipynb") == ["smoke results 3\n"]


def test_every_view_of_results_that_are_not_there_names_the_command(tmp_path):
    plan = small_plan(tmp_path)
    views = [
        lambda: render.entries(plan),
        lambda: scale.read(plan, "task_arithmetic"),
        lambda: scale.write(plan, "task_arithmetic"),
        lambda: plan.needed(plan.cells(plan.jobs[0]) / "coefficients.json"),
    ]
    for view in views:
        with pytest.raises(UserError) as caught:
            view()
        assert f"run `{plan.command}` in {ROOT}" in str(caught.value)


def test_a_damaged_choice_of_a_scale_is_an_error_that_says_what_to_do(tmp_path):
    plan = small_plan(tmp_path)
    path = plan.scale_file("task_arithmetic")
    path.parent.mkdir(parents=True)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=f"delete it and run `{re.escape(plan.command)}`"):
        scale.read(plan, "task_arithmetic")
