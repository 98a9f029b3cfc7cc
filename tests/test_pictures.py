"""What coefficients, history and importance draw: sized for a page, told apart by everyone, described in words."""

import io
import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from PIL import Image

from emkit import pictures
from emkit.results import History, Importance


def entry(step, loss, math, code):
    tasks = {"math": {"hidden": math, "logit": 2 * math}, "code": {"hidden": code, "logit": 2 * code}}
    means = {"math": {"mean": 0.3 + step / 10}, "code": {"mean": 0.3}}
    about = {"step": step, "loss": loss, "regulariser": 0.0, "learning_rate": 0.1}
    return {**about, "tasks": tasks, "coefficients": means}


@pytest.fixture
def history():
    return History(
        [{"history": [entry(0, 3.0, 1.0, 2.0), entry(1, 2.0, 0.5, 1.5)]}, {"history": [entry(0, 1, 0.4, 1)]}]
    )


@pytest.fixture
def importance():
    names = [f"model.layers.{i}.{kind}.weight" for i in range(2) for kind in ("self_attn.q_proj", "mlp.up_proj")]
    return Importance(dict(zip(names, (0.1, 0.2, 0.3, 0.4))), dict(zip(names, (0, 1, 1, 3))))


def coefficients(experts, kinds):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(len(experts), 6, len(kinds)))
    return pictures.maps(experts, [str(i) for i in range(6)], kinds, values, "coefficient α")


KINDS = [*pictures._ORDER, "layer_norm", "linear_1", "linear_2"]


@pytest.mark.parametrize("experts", [["A"], ["A", "B", "C"], ["A", "B", "C", "D", "E"]])
def test_no_picture_is_wider_than_a_page_and_no_text_smaller_than_nine_points(history, importance, experts):
    for figure in (history.plot(), importance.plot(), coefficients(experts, KINDS)):
        assert figure.get_figwidth() <= 8.7
        figure.draw_without_rendering()
        texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
        assert texts and min(text.get_fontsize() for text in texts) >= 9
        drawn = figure.get_tightbbox()  # inches; nothing is cut off at the page's edges
        assert drawn.x0 >= 0 and drawn.y0 >= 0
        assert drawn.x1 <= figure.get_figwidth() and drawn.y1 <= figure.get_figheight()


def test_labels_of_columns_do_not_run_into_each_other():
    figure = coefficients(list("ABCDE"), KINDS)
    figure.draw_without_rendering()
    for axis in (axis for axis in figure.axes[:-1] if axis.axison):
        boxes = [label.get_window_extent() for label in axis.get_xticklabels()]
        assert all(left.x1 <= right.x0 + 1 for left, right in itertools.pairwise(boxes))


def test_a_history_has_one_panel_a_term_and_says_where_a_stage_begins(history):
    axes = history.plot().axes
    assert [axis.get_title() for axis in axes] == [
        "hidden loss of each task",
        "logit loss of each task",
        "mean coefficient α of each expert",
    ]
    drawn = {line.get_label(): line for line in axes[1].lines}
    assert list(drawn["math"].get_ydata()) == [2.0, 1.0, 0.8]
    colours = [
        {line.get_label(): line.get_color() for line in axis.lines if line.get_label() in drawn} for axis in axes
    ]
    assert (
        colours[0] == colours[1]
        and colours[0]["math"] != colours[0]["code"]
        and colours[2]["math"] == colours[0]["math"]
    )
    [stage] = [line for line in axes[0].lines if line.get_label() not in ("math", "code")]
    assert list(stage.get_xdata()) == [2, 2]
    assert history.alt() == (
        "Lines over the steps of a fit. The loss goes from 3 to 1 in 3 steps; the mean coefficients: math from 0.30 to "
        "0.30, code from 0.30 to 0.30."
    )


def test_importance_is_drawn_with_its_chunks_in_the_cells_and_put_into_words(importance):
    axis = importance.plot().axes[0]
    assert axis.images[0].get_array().tolist() == [[0.1, 0.2], [0.3, 0.4]]
    assert [text.get_text() for text in axis.texts] == ["0", "1", "1", "3"]
    assert "The most important: model.layers.1.mlp.up_proj.weight (0.400)" in importance.alt()


def test_signed_values_have_white_at_nothing_and_amounts_begin_at_it():
    signed = pictures.maps(["a"], ["0"], ["x", "y"], np.array([[[-0.2, 0.5]]]), "α").axes[0].images[0]
    assert (signed.norm.vmin, signed.norm.vmax) == (-0.5, 0.5)
    assert all(part > 0.95 for part in to_rgb(signed.cmap(signed.norm(0.0))))
    amounts = pictures.maps(["a"], ["0"], ["x", "y"], np.array([[[0.2, 0.5]]]), "I").axes[0].images[0]
    assert (amounts.norm.vmin, amounts.norm.vmax) == (0.0, 0.5)


def test_a_notebook_gets_the_picture_at_its_width_with_its_words(importance):
    data, about = importance._repr_mimebundle_()
    assert about == {"image/png": {"width": 435, "alt": importance.alt()}} and data["text/plain"] == importance.alt()
    assert int.from_bytes(data["image/png"][16:20], "big") == 870  # two dots for each pixel


def test_a_drawing_is_kept_in_few_colours_and_a_photograph_in_all(importance):
    drawn = Image.open(io.BytesIO(pictures.png(importance.plot())))
    assert drawn.mode == "P"
    figure = pictures.figure(4, 4)
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    figure.subplots().imshow(noise)
    kept = Image.open(io.BytesIO(pictures.png(figure)))
    assert kept.mode == "RGB" and len(kept.getcolors(10**7)) > 10_000
