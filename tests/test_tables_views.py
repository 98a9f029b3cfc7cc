"""What the notebook shows of a table: paired comparisons, references, figures, the list of jobs, progress."""

import io
import math

import numpy as np
import pytest
from matplotlib import pyplot
from scipy import stats as distributions
from small_plan import ROWS, score, small_plan

from eval import comparisons, figures, render
from eval.listing import explained, listing
from eval.places import Job
from eval.plan import Plan
from eval.progress import Display

EM, TA = "expert_merging", "task_arithmetic"


@pytest.fixture
def plan(tmp_path):
    expert = {"id": "vqa", "label": "VQA Expert", "method": "checkpoint", "model": "VQA"}
    reset = {"id": "vqa_reset", "label": "VQA reset", "method": "reset_expert", "model": "VQA"}
    found = small_plan(tmp_path, rows=[*ROWS, expert, reset])
    for row in ("base", TA, "vqa_reset"):
        for name in found.benchmarks:
            score(found, Job(row, 0), name, 1, 0, 0, 0)
    for name in found.benchmarks:
        score(found, Job("vqa", 0), name, 1, 1, 0, 0)
        score(found, Job(EM, 0), name, 1, 1, 0, 1)
        score(found, Job(EM, 1), name, 1, 0, 0, 1)
    return found


def test_seeds_are_averaged_item_by_item(plan):
    assert [item["score"] for item in comparisons.row_items(plan, EM, "GQA")] == [1, 0.5, 0, 1]


def test_a_paired_comparison_by_hand(plan):
    gqa = next(c for c in comparisons.compare(plan, [(EM, TA)]) if c["benchmark"] == "GQA")
    differences = np.array([0, 0.5, 0, 1])
    error = differences.std(ddof=1) / 2
    reach = distributions.t.ppf(0.975, 3) * error
    assert gqa["rows"] == "Expert Merging − Task Arithmetic"
    assert (gqa["delta"], gqa["low"], gqa["high"]) == pytest.approx((37.5, 37.5 - 100 * reach, 37.5 + 100 * reach))
    assert gqa["p"] == pytest.approx(2 * distributions.t.sf(0.375 / error, 3)) and gqa["holm"] == gqa["p"]


def test_an_item_that_a_judge_left_undecided_is_left_out_of_both_rows(plan):
    score(plan, Job(EM, 1), "GQA", 1, 0, 0)  # without the fourth
    assert [item["score"] for item in comparisons.row_items(plan, EM, "GQA")] == [1, 0.5, 0]
    gqa = next(c for c in comparisons.compare(plan, [(EM, TA)]) if c["benchmark"] == "GQA")
    assert gqa["delta"] == pytest.approx(100 * 0.5 / 3)


def test_a_row_without_a_score_is_compared_by_its_status(plan):
    found = comparisons.compare(plan, [(EM, "ties"), (EM, TA)])
    assert found[-1] == {"rows": "Expert Merging − TIES Merging", "benchmark": "Avg", "status": "not run yet"}
    words = [comparison["verdict"] for comparison in comparisons.verdicts(found)]
    assert words[1] == "not run yet" and words[0] in ("ahead", "no difference shown")
    assert "| – | – | – | – | – | not run yet |" in comparisons.as_markdown(comparisons.verdicts(found))
    assert comparisons.compare(plan, [(EM, TA)]) == found[:-1]  # and Holm's rule knows nothing of it
    assert len(figures.differences(found, "t").figure.axes) == 1
    assert "not run yet" in figures.differences(found[-1:], "t").figure.axes[0].texts[0].get_text()
    plan.cell(Job(EM, 1), "GQA").unlink()
    assert [comparison["verdict"] for comparison in comparisons.verdicts(comparisons.compare(plan, [(EM, TA)]))] == [
        "not run yet"
    ]
    assert comparisons.seed_intervals(plan, [EM]) == [{"row": "Expert Merging", "status": "not run yet"}]
    pyplot.close("all")


def test_holm_runs_over_the_pairs_of_one_benchmark(plan):
    found = [c for c in comparisons.compare(plan, [(EM, TA), ("vqa", TA)]) if c["benchmark"] == "GQA"]
    smallest, largest = sorted(found, key=lambda c: c["p"])
    assert smallest["holm"] == pytest.approx(min(1, 2 * smallest["p"]))
    assert largest["holm"] == pytest.approx(min(1, max(2 * smallest["p"], largest["p"])))


@pytest.mark.parametrize(
    ("delta", "holm", "words"),
    [
        (1.0, 0.01, "ahead"),
        (-1.0, 0.01, "behind"),
        (9.0, 0.05, "no difference shown"),
        (1.0, math.nan, "no difference shown"),
    ],
)
def test_verdicts(delta, holm, words):
    assert comparisons.verdict({"delta": delta, "holm": holm}) == words


def test_what_merging_can_reach(plan):
    gqa = comparisons.reach(plan, render.entries(plan))[1]
    assert gqa == {
        "benchmark": "GQA",
        "own expert": "VQA",
        "base": 25.0,
        "expert": 50.0,
        "merged tensors only": 25.0,
        "leading expert": "VQA",
    }


def test_the_interval_over_seeds(plan):
    [found] = comparisons.seed_intervals(plan, [EM])
    mean, low, high = (found[key] for key in ("mean", "low", "high"))
    assert mean == 62.5 and high - mean == pytest.approx(distributions.t.ppf(0.975, 1) * 12.5)
    assert low == pytest.approx(2 * mean - high)


def test_the_list_of_jobs_for_the_paper_names_everything_and_opens_nothing():
    plan = Plan("table1", "paper")
    text = listing(plan)
    for words in ("OpenGVLab/InternVL2_5-1B", "InternVL2_5-1B_OCR", "MathVision_MINI", "gamma 5.0", "kappa 1.2"):
        assert words in text
    assert "expert_merging/4" in text and "not run yet" in text
    assert len([line for line in text.splitlines() if "method" in line]) == len(plan.jobs)


def test_progress_says_a_stage_once_it_ends_and_bars_in_between():
    stages = [[("data", 0, 2, ""), ("rows", 0, 4, "cells")], [("data", 2, 2, ""), ("rows", 1, 4, "cells")]]
    stream = io.StringIO()
    display = Display(lambda: stages.pop(0), stream)
    display.update()
    display.update()
    lines = stream.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["data", "data"]  # a log is not told of every cell
    assert "0/2" in lines[0] and "2/2" in lines[1]


def test_a_rows_options_are_shown_with_their_sources(tmp_path):
    rows = [{"id": "ties", "label": "TIES", "method": "ties", "options": {"merge": "sum"}}]
    rows += [{"id": "pp", "label": "++", "method": "adamerging_pp"}]
    methods = {"ties": {"density": 0.35}, "adamerging": {"initial": 0.4}, "adamerging_pp": {"density": 0.5}}
    sources = {"methods.ties.density": "ours: tried", "methods.adamerging.initial": "ours: too"}
    plan = small_plan(tmp_path, rows=rows, methods=methods, sources=sources)
    text = explained(plan, "ties")
    assert "density = 0.35  (ours: tried)" in text and "merge = sum  (given in the row)" in text
    assert "scope = model  (default: original" in text and "scale = one of [0.1, 0.5]  (best mean" in text
    text = explained(plan, "pp")
    assert "initial = 0.4  (ours: too)" in text and "density = 0.5  (methods.adamerging_pp.density)" in text
