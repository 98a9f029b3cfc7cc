"""The one notebook runner: typed parameters, and an output only of a run that succeeded."""

import json

import nbformat
import pytest

from emkit.errors import UserError
from eval import papermill_runner

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


def test_an_int_is_a_float_but_not_the_other_way_round():
    known = {"rate": ("float", 0.5), "count": ("int", 1)}
    assert papermill_runner.checked({"rate": 2}, known, "n") == {"rate": 2.0}
    with pytest.raises(UserError):
        papermill_runner.checked({"count": 2.0}, known, "n")


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
