"""What is committed of a notebook: its cells, in two forms that agree, and nothing of a run.

Saving one in Jupyter, outputs and all, makes no test fail: it is stripped when it is committed.
"""

import subprocess
import sys
from pathlib import Path

import as_committed
import jupytext
import nbformat
import pytest

from eval import papermill_runner

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
STRIP = ["--extra-keys", "metadata.language_info metadata.jupytext"]


def script(path: Path) -> Path:
    return path.parent / "py" / f"{path.stem}.py"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_and_its_script_have_the_same_cells(path):
    """`make format` brings them together."""
    pair = papermill_runner.content(jupytext.read(script(path)))
    assert papermill_runner.content(nbformat.read(path, as_version=4)) == pair


def test_no_script_is_without_its_notebook():
    assert {path.stem for path in (ROOT / "notebooks" / "py").glob("*.py")} == {path.stem for path in NOTEBOOKS}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_names_its_kernel_as_jupyter_does_and_nothing_else(path):
    """So that saving it in Lab leaves its kernel's name as it is, and papermill knows what to run it with."""
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    assert nbformat.reads(as_committed.text(path), as_version=4).metadata == {"kernelspec": kernel}


def test_notebooks_are_stripped_as_the_hook_and_make_format_do_it(tmp_path):
    for path in NOTEBOOKS:
        (tmp_path / path.name).write_text(as_committed.text(path), encoding="utf-8")
    names = map(str, tmp_path.iterdir())
    run = subprocess.run([sys.executable, "-m", "nbstripout", "--verify", *STRIP, *names], check=False)
    assert run.returncode == 0
    written = [(ROOT / name).read_text(encoding="utf-8") for name in ("Makefile", ".pre-commit-config.yaml")]
    assert all(f'nbstripout {STRIP[0]} "{STRIP[1]}"' in text for text in written)


def test_an_edit_of_either_reaches_the_other(tmp_path):
    (tmp_path / "jupytext.toml").write_text((ROOT / "notebooks" / "jupytext.toml").read_text())
    source = tmp_path / "one.ipynb"
    cell = nbformat.v4.new_code_cell("a: int = 1", metadata={"tags": ["parameters"]})
    notebook = nbformat.v4.new_notebook(cells=[cell])
    nbformat.write(notebook, source)
    sync = [sys.executable, "-m", "jupytext", "--quiet", "--sync", str(source)]
    subprocess.run(sync, check=True)
    assert script(source).read_text() == '# %% tags=["parameters"]\na: int = 1\n'
    script(source).write_text('# %% tags=["parameters"]\na: int = 2\n')
    subprocess.run(sync, check=True)
    [cell] = nbformat.read(source, as_version=4).cells
    assert (cell.source, cell.metadata.tags) == ("a: int = 2", ["parameters"])
