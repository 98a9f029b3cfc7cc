"""The figures of a table: what they draw, against an independent computation; their size; what they say in words."""

import csv
import itertools
import math

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_rgba
from matplotlib.text import Text
from small_plan import ROWS, score, small_plan

from emkit import pictures
from emkit.coefficients import Coefficients
from emkit.files import write_json
from eval import comparisons, figures, heatmap, render
from eval.places import Job
from eval.plan import Plan

EM, TA = "expert_merging", "task_arithmetic"


@pytest.fixture(autouse=True)
def closed():
    yield
    pyplot.close("all")


@pytest.fixture
def plan(tmp_path):
    expert = {"id": "vqa", "label": "VQA Expert", "method": "checkpoint", "model": "VQA"}
    found = small_plan(tmp_path, rows=[*ROWS, expert])
    for name in found.benchmarks:
        score(found, Job("base", 0), name, *[0] * 60, *[1] * 40)  # 40
        score(found, Job("vqa", 0), name, *[0] * 20, *[1] * 80)  # 80
        score(found, Job(TA, 0), name, *[0] * 50, *[1] * 50)  # 50: a quarter of the way
        score(found, Job(EM, 0), name, *[0] * 70, *[1] * 30)  # 30: a quarter of it, backwards
        score(found, Job(EM, 1), name, *[0] * 70, *[1] * 30)
    return found


def committed(table):
    """Label → column → (score, standard error) of a committed table, read without our code."""
    found = {}
    with open(f"results/mini/tables/{table}.csv", newline="", encoding="utf-8") as stream:
        for line in csv.DictReader(stream):
            found.setdefault(line["method"], {})[line["benchmark"]] = float(line["score"]), float(line["stderr"])
    return found


OWN = {"table1": ["VQA", "VQA", "Geometry", "Geometry", "Chart", "OCR", "OCR", *["Grounding"] * 3]}
OWN |= {"table2": OWN["table1"], "table3": ["Chat", "Math", "Math", "Code", "Code"]}


@pytest.mark.parametrize("table", sorted(OWN))
def test_the_colours_are_the_share_of_the_way_from_the_base_to_the_columns_expert(table):
    plan, scores = Plan(table, "mini"), committed(table)
    lines = render.read_csv(f"results/mini/tables/{table}.csv")
    yardsticks, base = heatmap.ways(plan, lines), next(iter(scores))
    columns = list(scores[base])
    low = np.array([scores[base][name] for name in columns[:-1]])
    high = np.array([scores[f"{own} Expert"][name] for own, name in zip(OWN[table], columns)])
    ends = np.vstack([np.column_stack([low[:, 0], high[:, 0]]), [[low[:, 0].mean(), high[:, 0].mean()]]])
    errors = np.hypot(low[:, 1], high[:, 1])
    errors = np.append(errors, math.sqrt(np.sum(errors**2)) / len(errors))
    for label, row in render.grid(lines).items():
        mine = np.array([scores[label][name][0] for name in columns])
        expected = np.where(
            ends[:, 1] - ends[:, 0] > 2 * errors, 100 * (mine - ends[:, 0]) / np.diff(ends)[:, 0], np.nan
        )
        np.testing.assert_allclose(heatmap.shares(row, yardsticks, columns), expected)


def cells(axis):
    """The numbers in an axis' cells, row by row, with the cells' colours."""
    return [text.get_text() for text in axis.texts], [patch.get_facecolor() for patch in axis.patches]


def test_merges_stand_apart_on_their_own_scale_and_what_is_not_run_says_so(plan):
    merges, others, *bars = figures.heatmap(plan, render.entries(plan)).figure.axes
    assert [tick.get_text() for tick in merges.get_yticklabels()] == [
        "Task Arithmetic",
        "TIES Merging",
        "Expert Merging",
    ]
    assert [tick.get_text() for tick in others.get_yticklabels()] == ["Base", "VQA Expert"]
    assert [tick.get_text() for tick in merges.get_xticklabels()] == ["VizWiz", "GQA", "Avg"]
    texts, colours = cells(merges)
    assert texts == ["50.0"] * 3 + ["not run yet"] + ["30.0"] * 3 + ["VQA"]
    blue, grey, red = (colours[3 * i] for i in range(3))
    assert blue == heatmap.COLOURS(1.0) and red == heatmap.COLOURS(0.0)  # ±25 %, where the merges' own scale ends
    assert grey == to_rgba(heatmap.GREY)
    texts, colours = cells(others)
    assert texts[:6] == ["40.0"] * 3 + ["80.0"] * 3
    assert colours[0] == heatmap.COLOURS(0.5) and colours[3] == heatmap.COLOURS(
        1.0
    )  # the base is white, the expert blue
    assert [bar.get_xlim() for bar in bars] == [(-25, 25), (-100, 100)]


def test_a_failed_cell_and_a_column_without_a_yardstick_are_grey_and_say_what_they_are(plan):
    lines = [
        render.Entry(e.method, e.benchmark, status="failed")
        if (e.method, e.benchmark) == ("Task Arithmetic", "GQA")
        else e
        for e in render.entries(plan)
        if not (e.method == "Base" and e.benchmark == "VizWiz")
    ]
    lines.insert(0, render.Entry("Base", "VizWiz"))
    texts, colours = cells(figures.heatmap(plan, lines).figure.axes[0])
    assert texts[:3] == ["50.0", "failed", "50.0"]
    assert [colour == to_rgba(heatmap.GREY) for colour in colours[:3]] == [
        True,
        True,
        True,
    ]  # no base, no score, no mean
    assert colours[7] != to_rgba(heatmap.GREY)  # Expert Merging on GQA


def test_an_expert_within_two_errors_of_the_base_measures_nothing():
    assert heatmap.Way(40.0, 44.1, 2.0, "VQA").measures and not heatmap.Way(40.0, 43.9, 2.0, "VQA").measures
    assert not heatmap.Way(40.0, 30.0, 2.0, "VQA").measures


def test_colours_end_where_four_of_five_merges_lie():
    assert heatmap.limit(np.array([1.0, -20.0, 24.0, 25.0, 400.0])) == 25
    assert heatmap.limit(np.array([1.0, -20.0, 24.0, 26.0, np.nan, 400.0])) == 50
    assert heatmap.limit(np.array([np.nan])) == 100


def test_rows_and_columns_are_those_that_are_asked_for(plan):
    [merges, _] = figures.heatmap(plan, render.entries(plan), [EM], ["GQA"]).figure.axes
    assert [tick.get_text() for tick in merges.get_xticklabels()] == ["GQA", "Avg"]
    assert cells(merges)[0][:2] == ["30.0", "30.0"]


def test_a_table_without_experts_has_numbers_without_colours(tmp_path, recwarn):
    plan = small_plan(tmp_path)
    for name in plan.benchmarks:
        score(plan, Job("base", 0), name, 1, 0)
    picture = figures.heatmap(plan, render.entries(plan))
    picture.figure.draw_without_rendering()
    assert len(picture.figure.axes) == 2 and not recwarn.list


def test_the_names_of_many_columns_stand_slanted_so_that_none_covers_another():
    lines = render.read_csv("results/mini/tables/table1.csv")
    axis = figures.heatmap(Plan("table1", "mini"), lines).figure.axes[0]
    assert {label.get_rotation() for label in axis.get_xticklabels() if label.get_text()} == {35}
    lines = render.read_csv("results/mini/tables/table3.csv")
    axis = figures.heatmap(Plan("table3", "mini"), lines).figure.axes[0]
    axis.figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in axis.get_xticklabels()]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_a_figure_rests_on_the_written_table_alone(plan, tmp_path):
    for name in plan.benchmarks:
        score(plan, Job(TA, 0), name, *[0.44445] * 100)  # 44.445, which is 44.4 or, once written as 44.45, 44.5
    lines = render.entries(plan)
    (tmp_path / "t.csv").write_text(render.as_csv(lines), encoding="utf-8")
    drawn = [figures.heatmap(plan, of).figure for of in (lines, render.read_csv(tmp_path / "t.csv"))]
    assert pictures.png(drawn[0]) == pictures.png(drawn[1])


# ---- differences
def comparison(pair, benchmark, delta, half, holm):
    low, high = delta - half, delta + half
    return {"rows": pair, "benchmark": benchmark, "delta": delta, "low": low, "high": high, "p": holm, "holm": holm}


FOUND = [comparison("A − B", f"c{i}", 1.0, 2.0, 0.5) for i in range(18)]
FOUND += [comparison("A − B", "far", 75.0, 5.0, 0.0), comparison("A − B", "Avg", -2.0, 1.0, 0.01)]


def test_one_outlier_does_not_flatten_the_others_and_keeps_its_number():
    picture = figures.differences(FOUND, "t")
    axis = picture.figure.axes[0]
    assert axis.get_xlim()[1] < 4 and [text.get_text() for text in axis.texts] == ["+75"]
    arrows = [line for line in axis.lines if line.get_marker() == ">"]
    assert len(arrows) == 1 and axis.get_xlim()[0] < arrows[0].get_xdata()[0] < axis.get_xlim()[1]
    assert "A − B: -2.0 points (-3.0 to -1.0)" in picture.alt.replace("−2", "-2").replace("−3", "-3").replace(
        "−1", "-1"
    )


def test_filled_points_are_those_that_are_shown_to_differ():
    axis = figures.differences(FOUND, "t").figure.axes[0]
    points = [line for line in axis.lines if line.get_marker() in ("o", "D")]
    assert [line.get_markerfacecolor() for line in points] == ["white"] * 18 + [figures.BEHIND]
    names = [tick.get_text() for tick in axis.get_yticklabels()]
    assert names[-1] == "Avg" and axis.get_ylim()[0] > axis.get_ylim()[1]  # the average is lowest


def test_every_pair_has_a_panel_however_many_there_are():
    found = [comparison(f"A − {i}", name, 1.0, 2.0, 0.5) for i in range(7) for name in ("GQA", "Avg")]
    figure = figures.differences(found, "t").figure
    assert len([axis for axis in figure.axes if axis.axison]) == 7 and figure.get_figwidth() <= 8.7


def test_intervals_that_are_not_there_are_not_drawn_and_do_not_break_the_axis():
    single = comparison("A − B", "Avg", 3.0, math.nan, math.nan)  # of one item
    figures.differences([single], "t").figure.draw_without_rendering()


# ---- curves and coefficients
def test_all_curves_are_one_figure_and_a_scale_that_is_not_chosen_says_so(plan):
    assert "not run yet" in figures.scale_curves(plan).figure.axes[0].get_title()
    curve = [{"scale": 0.1, "mean": 40.0, "stderr": 1.0}, {"scale": 0.5, "mean": 41.0, "stderr": 1.0}]
    write_json(plan.scale_file(TA), {"scale": 0.5, "curve": curve})
    picture = figures.scale_curves(plan)
    [axis] = picture.figure.axes
    assert axis.get_title() == "Task Arithmetic: λ = 0.5" and list(axis.lines[0].get_ydata()) == [40.0, 41.0]
    assert "Chosen: Task Arithmetic λ = 0.5" in picture.alt


def test_coefficients_are_told_in_words(plan):
    assert "not run yet" in figures.learned(plan).alt
    coefficients = Coefficients(("a", "b"), {"x.weight": np.array([[1.0, 3.0], [0.0, 0.0]])})
    picture = figures.coefficient_map(coefficients, "t")
    assert picture.figure.axes[0].images[0].get_array().tolist() == [[2.0]]
    assert "a 2.00 (2.00 to 2.00), b 0.00 (0.00 to 0.00)" in picture.alt


# ---- all of them
def test_every_figure_fits_the_page_and_has_text_of_the_pages_size(plan):
    lines = render.read_csv("results/mini/tables/table1.csv")
    many = [
        comparison(f"Expert Merging++ − {name}", b, 1.0, 2.0, 0.5) for name in "ABCDE" for b in ("MATH-Vision", "Avg")
    ]
    drawn = [
        figures.heatmap(Plan("table1", "mini"), lines),
        figures.heatmap(Plan("table3", "mini"), render.read_csv("results/mini/tables/table3.csv")),
        figures.differences(many, "Paired differences"),
        figures.scale_curves(Plan("table1", "mini", "nowhere")),
        figures.learned(plan),
    ]
    for figure, alt in drawn:
        figure.draw_without_rendering()
        assert figure.get_figwidth() == 8.7 and len(alt) > 20
        assert min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text()) >= 9
        page = figure.get_tightbbox()
        assert page.x0 >= -0.02 and page.x1 <= 8.72 and page.y0 >= -0.02 and page.y1 <= figure.get_figheight() + 0.02


def test_a_saved_figure_is_the_same_bytes_again(plan, tmp_path):
    for name in ("a.png", "b.png"):
        figures.save(figures.heatmap(plan, render.entries(plan)).figure, tmp_path / name)
    data = (tmp_path / "a.png").read_bytes()
    assert data == (tmp_path / "b.png").read_bytes() and int.from_bytes(data[16:20], "big") == 2 * 870


def test_a_comparison_of_real_rows_is_drawn(plan):
    found = comparisons.compare(plan, [(EM, TA), ("vqa", TA)])
    figure = figures.differences(found, "t").figure
    assert len(figure.axes) == 2 and pictures.png(figure)
