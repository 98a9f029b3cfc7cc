"""How a figure reaches a notebook's page: its width, its sharpness, its alternative text, the same bytes again."""

import base64

import matplotlib.pyplot as plt
import nbclient
import nbconvert
import nbformat
import pytest
from bs4 import BeautifulSoup

from emkit import pictures
from eval import desk, style

CODE = """from eval import desk
import matplotlib.pyplot as plt
desk.ready()
figure, axis = plt.subplots(figsize=(8.7, 2))
axis.plot([1, 2])
desk.show(figure, 'A line that "rises"\\n  from 1 to 2.')"""


@pytest.fixture(scope="module")
def shown():
    found = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CODE)])
    return nbclient.NotebookClient(found, kernel_name="python3").execute()


def test_a_shown_figure_is_one_sharp_picture_of_the_pages_width_with_its_alternative_text(shown):
    [output] = shown.cells[0].outputs  # shown once: by show, and not by the kernel's hook for open figures again
    assert output.data["text/plain"] == 'A line that "rises" from 1 to 2.'
    assert output.metadata["image/png"] == {"width": 870, "alt": 'A line that "rises" from 1 to 2.'}
    header = base64.b64decode(output.data["image/png"])[:24]
    assert int.from_bytes(header[16:20], "big") == 2 * 870  # the width in a PNG's header


def test_the_alternative_text_reaches_a_page_that_knows_of_it(shown):
    page, _ = nbconvert.HTMLExporter(template_name="classic").from_notebook_node(shown)
    picture = BeautifulSoup(page, "html.parser").img
    assert picture["alt"] == 'A line that "rises" from 1 to 2.' and picture["width"] == "870"


def test_the_same_figure_is_the_same_bytes_and_is_closed():
    def drawn():
        figure, axis = plt.subplots(figsize=(style.WIDTH, 2))
        axis.plot([1, 2])
        return figure

    first, second = drawn(), drawn()
    assert pictures.png(first) == pictures.png(second)
    assert b"matplotlib" not in pictures.png(first).lower()
    number = first.number
    desk.show(first, "A line.")
    assert not plt.fignum_exists(number)
    plt.close("all")


def test_a_figure_without_alternative_text_is_refused():
    with pytest.raises(ValueError, match="alternative text"):
        desk.show(plt.figure(), "  ")
    plt.close("all")
