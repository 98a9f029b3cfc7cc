"""Sliders without a browser: a moved slider makes and asks another merge, and a figure stands where no kernel runs."""

import io

import ipywidgets as widgets
import pytest
from PIL import Image, ImageChops

from emkit import pictures
from emkit.coefficients import Coefficients
from emkit.errors import UserError
from eval.lessons import dials, probe

VIEW = "application/vnd.jupyter.widget-view+json"


@pytest.fixture(scope="module")
def zoo():
    return probe.open_zoo("mini", "internvl")


@pytest.fixture(scope="module")
def dial(zoo):
    return dials.AlphaDial(zoo, n=4, start=0.3, task="Chart")


def alone(zoo, alpha, question):
    """What a fresh model of the same merge says."""
    return probe.answers(zoo.experts.live().set(alpha), [question])[0]


def test_a_moved_slider_makes_another_merge_and_shows_what_that_one_says(zoo, dial):
    box = dial.box
    seen = {}
    for value in (0.0, 1.0):
        for slider in dial.alpha.values():
            slider.value = 0.0
        dial.alpha["Chart"].value = value
        seen[value] = dial.reply.text
        assert dial.reply.text == alone(zoo, {"Chart": value}, dial.question)
        assert dial.reply.right == dial.question.right(dial.reply.text)
        assert f"{dial.reply.ask_ms:.0f} ms" in dial.said.value and dials.MARK[dial.reply.right] in dial.said.value
    assert isinstance(box, widgets.HBox)
    assert dial.reply.set_ms < 1000


def test_some_answer_changes_along_the_dial(zoo, dial):
    found = dials._replies(zoo, dial.along("Chart"), dial.questions["Chart"])
    picked = dials._telling(found)
    assert len({replies[picked] for replies in found.values()}) > 1


def test_another_task_lists_its_questions_and_shows_its_picture(dial):
    dial.box  # noqa: B018 - made when it is looked at
    dial.task.value = "Grounding"
    assert dial.question is dial.questions["Grounding"][0] and len(dial.item.options) == 4
    dial.item.value = 2
    assert dial.question is dial.questions["Grounding"][2]
    shown = Image.open(io.BytesIO(dial.picture.value))
    assert shown.tobytes() == dial.question.image.tobytes()
    assert "base + τ Grounding" in dial.said.value
    dial.task.value = "Chart"


def test_what_a_model_wrote_is_shown_and_not_rendered():
    assert "&lt;b&gt;" in dials._line("who", "<b>bold</b>", None)
    assert dials._wrapped("$x$", 10, 1) == r"\$x\$"


def test_the_output_holds_controls_and_a_figure_and_the_dial_is_as_it_was(dial):
    for slider in dial.alpha.values():
        slider.value = 0.4
    before = dial.reply.text
    data, about = dial._repr_mimebundle_()
    assert VIEW in data and data["image/png"][:4] == b"\x89PNG"
    assert about["image/png"]["width"] == 870 and data["text/plain"] == about["image/png"]["alt"]
    assert dial.reply.text == before == alone(dial.zoo, 0.4, dial.question)


def test_small_things_in_a_picture_keep_their_colours(dial):
    """A question may be about a red point of a few dots; the notebook's copy of the figure has few colours."""
    full, figure = io.BytesIO(), dial.figure
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # a layout that is worked out anew moves what is drawn
    figure.savefig(full, format="png", dpi=200)
    shown, drawn = (Image.open(io.BytesIO(data)).convert("RGB") for data in (pictures.png(figure), full.getvalue()))
    assert max(high for _, high in ImageChops.difference(shown, drawn).getextrema()) <= pictures.UNSEEN
    assert len(pictures.png(figure)) < len(full.getvalue())


def test_fits_are_turned_through_and_a_text_has_no_picture():
    zoo = probe.open_zoo("mini", "mistral")
    names, experts = zoo.experts.vectors.names, zoo.names
    merges = {f"{value:g}": Coefficients.constant(names, dict.fromkeys(experts, value)) for value in (0.0, 0.4)}
    dial = dials.FitDial(zoo, merges, "β", n=2, task="Math")
    dial.box  # noqa: B018
    assert dial.picture.layout.display == "none"
    for label, merge in merges.items():
        dial.fit.value = label
        assert dial.reply.text == alone(zoo, merge, dial.question)
    with pytest.raises(UserError, match="no fits"):
        dials.FitDial(zoo, {}, "β")
    with pytest.raises(UserError, match="no expert 'Nobody'"):
        dials.FitDial(zoo, merges, "β", task="Nobody")
