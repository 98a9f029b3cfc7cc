"""Tables 4 to 13 as data: the paper's rows, one row one number, values in the paper's units; what becomes of claims."""

import csv
import itertools
import json
import math

import numpy as np
import pytest
import yaml
from small_plan import ROOT, score, small_plan

from emkit.coefficients import Coefficients
from emkit.config import Settings, option
from emkit.errors import UserError
from eval import claims, comparisons, notebooks, render, sweeps
from eval import table as tables
from eval.configured import every_sample
from eval.places import Job
from eval.plan import Plan
from eval.summary import Summary, expanded
from eval.view import View

NUMBERS = range(5, 14)
MAIN = {"internvl": "table1", "qwen2_vl": "table2", "mistral": "table3"}
GAMMAS = [0, 0.2, 0.4, 0.6, 0.8, 0.9, 1, 1.5, 2, 3, 5, 8, 10]  # Appendix C.3
SAMPLES = [3, 5, 10, 15, 20, 30, 50, 100]  # Appendix C.4
each = pytest.mark.parametrize


# ---- the tables
@each("number", NUMBERS)
def test_the_rows_are_the_papers_in_its_order(number):
    plan = Plan(f"table{number}", "mini")
    with open(ROOT / f"eval/paper/table{number}.csv", encoding="utf-8", newline="") as file:
        head, *lines = csv.reader(file)
    assert [*plan.benchmarks, "Avg"] == head[1:]
    ours = list(plan.rows)[len(lines) :]
    assert ours == (["trade_offs"] if number == 5 else []), "rows of our own stand below the paper's"
    theirs = tables.published(plan.table)
    named = [row.label for row in plan.rows.values() if row.id not in ours]
    if plan.table.sweep is None:
        assert {*named} == {line[0] for line in lines}
    assert all(theirs[label]["Avg"] is not None for label in named)
    averages = [theirs[label]["Avg"] for label in named]
    assert sorted(averages) == sorted(float(line[-1]) for line in lines)


@each("name", ["mini", "smoke", "paper"])
def test_every_row_and_seed_is_scored_once(name):
    plans, summaries = expanded([f"table{number}" for number in range(1, 14)], name, "results")
    assert len(plans) == 12 and [each.path.stem for each in summaries] == ["table4"]
    for backbone, main in MAIN.items():
        own = [plan for plan in plans if plan.backbone == backbone]
        assert own[0].name == main
        by_content = {}
        for plan in own:
            for job in plan.jobs:
                if not plan.method(job.row).learned or plan.method(job.row).name.startswith("ada"):
                    continue
                what = (
                    plan.entry(job.row).method,
                    str(plan.settings(job.row)),
                    str(plan.calibration(job.row)),
                    job.seed,
                )
                by_content.setdefault(what, set()).add(job.row)
        assert all(len(rows) == 1 for rows in by_content.values()), by_content


DEFAULTS = [
    (5, "expert_merging"),
    (5, "no_chunking"),
    (8, "gamma_5.0"),
    (9, "gamma_0.8"),
    (10, "gamma_0.8"),
    (11, "samples_5"),
    (12, "samples_10"),
    (13, "samples_5"),
]


@each(("number", "row"), DEFAULTS)
def test_the_default_row_is_table_1_s_expert_merging(number, row):
    plan = Plan(f"table{number}", "mini")
    main = Plan(MAIN[plan.backbone], "mini")
    assert plan.cell(Job(row, 0), "GQA") == main.cell(Job("expert_merging", 0), "GQA")
    assert plan.expected(Job(row, 0), plan.benchmarks[0]) == main.expected(Job("expert_merging", 0), plan.benchmarks[0])


def test_no_regularisation_is_one_row_in_the_ablation_and_in_the_sweep():
    for ablation, sweep in ((5, 8), (6, 9), (7, 10)):
        one, other = Plan(f"table{ablation}"), Plan(f"table{sweep}")
        assert one.settings("no_regularisation").gamma == 0
        assert one.cells(Job("no_regularisation", 1)) == other.cells(Job("no_regularisation", 1))


@each(("number", "default"), [(8, 5.0), (9, 0.8), (10, 0.8)])
def test_gamma_is_a_multiple_of_the_papers_default(number, default):
    plan = Plan(f"table{number}", "mini")
    usual = plan.profile.methods["expert_merging"]["gamma"]
    assert list(sweeps.values(plan).values()) == GAMMAS
    for name, given in sweeps.values(plan).items():
        assert math.isclose(plan.settings(name).gamma, usual * given / default, rel_tol=1e-12)
    paper = Plan(f"table{number}", "paper")
    assert [paper.settings(name).gamma for name in paper.rows] == pytest.approx(GAMMAS)


@each("number", [11, 12, 13])
def test_a_fit_sees_every_sample_in_as_many_steps(number):
    plan = Plan(f"table{number}", "mini")
    assert [plan.calibration(row).samples for row in plan.rows] == SAMPLES
    for row in plan.rows:
        optimiser = plan.settings(row).optimiser
        assert optimiser.steps == 80 and optimiser.batch * optimiser.steps >= plan.calibration(row).samples
        assert optimiser.batch == 0.25 or optimiser.batch / 2 * optimiser.steps < plan.calibration(row).samples


def test_where_a_profile_has_another_number_of_samples_that_row_is_its_default():
    plan = Plan("table11", "smoke")
    assert all(plan.scored(row) == row for row in plan.rows)  # smoke has 2 samples, which the paper has not


class Steps(Settings):
    """An optimiser of a toy."""

    steps: int = option(8, "steps")
    batch: object = option("all", "batch")


class Fitted(Settings):
    optimiser: Steps = option(Steps(), "optimiser")


@each(
    ("batch", "samples", "found"),
    [(0.25, 2, 0.25), (0.25, 3, 0.5), (0.25, 5, 1), (1, 9, 2), (3, 100, 24), (0.3, 5, 1), ("all", 99, "all")],
)
def test_a_batch_is_doubled_until_an_epoch_fits(batch, samples, found):
    given = Fitted(optimiser=Steps(batch=batch))
    assert every_sample(given, samples).optimiser.batch == found


def test_even_chunks_are_two_in_every_tensor():
    from emkit.alignment.importance import allocate_chunks

    settings = Plan("table5").settings("chunked_evenly")
    importance = dict(zip("abcdefg", (0.4, 0.3, 0.15, 0.1, 0.03, 0.02, 0.0)))
    assert set(allocate_chunks(importance, settings.budget, settings.kappa).values()) == {2}


def test_a_value_in_published_units_is_asked_of_an_option_that_the_row_gives(tmp_path):
    rows = [{"id": "x", "label": "x", "method": "expert_merging", "relative_to": {"gamma": 5.0}}]
    with pytest.raises(UserError, match="the row gives no option 'gamma'"):
        small_plan(tmp_path, rows=rows)


@each(
    ("claim", "why"),
    [
        ({"ahead_of": ["b"], "level_with": ["b"], "points": 1.0}, "a claim has one of"),
        ({}, "a claim has one of"),
        ({"not_behind": ["b"]}, "need 'points'"),
        ({"ahead_of": ["b"], "points": 1.0}, "need 'points'"),
        ({"ahead_of": ["nobody"]}, "unknown row 'nobody'"),
    ],
)
def test_a_claim_that_is_none_is_refused(tmp_path, claim, why):
    rows = [{"id": name, "label": name, "method": "weight_average"} for name in "ab"]
    data = {"title": "T", "backbone": "internvl", "columns": ["GQA"], "rows": rows}
    data["claims"] = [{"says": "a is better", "where": "Section 1", "row": "a"} | claim]
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(UserError, match=why):
        tables.load(tmp_path / "t.yaml")


# ---- verdicts
def difference(delta, low, high, holm):
    return {"delta": delta, "low": low, "high": high, "holm": holm}


def claim(**rule):
    return tables.Claim(says="x", where="y", row="a", **rule)


@each(
    ("found", "said"),
    [
        ([difference(2, 1, 3, 0.01)], "shown"),
        ([difference(2, -1, 5, 0.20)], "not shown"),
        ([difference(-2, -3, -1, 0.01)], "contradicted"),
        ([difference(2, 1, 3, 0.01), difference(1, -1, 3, 0.4)], "not shown"),
        ([difference(2, 1, 3, 0.01), difference(-1, -2, -0.5, 0.01)], "contradicted"),
    ],
)
def test_ahead_needs_every_difference_to_be_larger_than_its_error(found, said):
    assert claims.verdict(claim(ahead_of=["b"] * len(found)), found) == said


@each(
    ("found", "said"),
    [
        ([difference(0.2, -0.5, 0.9, 0.5)], "shown"),  # the other is ahead by at most 0.5
        ([difference(0.2, -1.5, 1.9, 0.5)], "not shown"),
        ([difference(5.0, 4.0, 6.0, 0.01)], "shown"),  # far ahead is not behind
        ([difference(-3.0, -4.0, -2.0, 0.01)], "contradicted"),
        ([difference(-0.9, -1.2, -0.6, 0.01)], "not shown"),  # behind, perhaps by less than the margin
    ],
)
def test_not_behind_needs_the_interval_to_end_below_the_margin(found, said):
    assert claims.verdict(claim(not_behind=["b"], points=1.0), found) == said


@each(
    ("found", "said"),
    [
        ([difference(0.1, -0.8, 0.9, 0.5)], "shown"),
        ([difference(0.1, -0.8, 1.1, 0.5)], "not shown"),
        ([difference(0.0, -0.5, 0.5, 1.0), difference(3.0, 1.5, 4.5, 0.01)], "contradicted"),
    ],
)
def test_level_needs_the_interval_within_the_margin(found, said):
    assert claims.verdict(claim(level_with=["b"] * len(found), points=1.0), found) == said


# ---- a table that is half run
EM = {"id": "expert_merging", "label": "Expert Merging", "method": "expert_merging"}
HALF = [
    EM,
    EM | {"id": "no_hidden_alignment", "label": "w/o hidden alignment", "options": {"hidden_weight": 0.0}},
    EM | {"id": "no_chunking", "label": "no chunking", "plain": "expert_merging"},
]


def half(folder):
    plan = small_plan(folder, rows=HALF)
    data = yaml.safe_load(plan.path.read_text()) | {"against": "expert_merging", "notebook": "ablation"}
    data["published"]["file"] = str(ROOT / "eval/paper/table5.csv")
    about = {"where": "Section 4.4", "row": "expert_merging"}
    data["claims"] = [
        about | {"says": "hidden alignment helps", "ahead_of": ["no_hidden_alignment"]},
        about | {"says": "chunks help", "ahead_of": ["no_chunking"]},
    ]
    plan.path.write_text(yaml.safe_dump(data, sort_keys=False))
    return Plan(plan.path, plan.profile_path, plan.home.parent)


def test_one_row_under_two_names_is_one_job_and_one_number(tmp_path):
    plan = half(tmp_path)
    assert [job.name for job in plan.jobs] == [
        f"{row}/{seed}" for row in ("expert_merging", "no_hidden_alignment") for seed in (0, 1)
    ]
    for seed, name in itertools.product((0, 1), plan.benchmarks):
        score(plan, Job("expert_merging", seed), name, *[1] * 6, *[0] * 6)
    found = render.grid(render.entries(plan))
    assert found["no chunking"]["Avg"].score == found["Expert Merging"]["Avg"].score == 50
    assert found["w/o hidden alignment"]["Avg"].status == "not run yet"
    judged = claims.judged(plan, comparisons.compare(plan, plan.table.pairs))
    assert [line["in words"] for line in judged] == ["not run yet", "one row with this profile"]


def test_a_claim_is_judged_whichever_way_round_its_pair_was_compared(tmp_path):
    plan = half(tmp_path)
    for seed, name in itertools.product((0, 1), plan.benchmarks):
        score(plan, Job("expert_merging", seed), name, *[1] * 20, *[0] * 4)
        score(plan, Job("no_hidden_alignment", seed), name, *[1] * 8, *[0] * 16)
    assert plan.table.pairs[0] == ["no_hidden_alignment", "expert_merging"]  # the claim has them the other way
    shown = View(str(plan.path), str(plan.profile_path), str(plan.home.parent))
    first = claims.judged(plan, shown.compared)[0]
    assert first["in words"] == "shown" and first["ours, points"].startswith("+50.00 (")
    assert first["its differences"] == "+0.36"  # 58.11 − 57.75 in Table 5
    said = shown.claims()
    assert "1 shown" in said and "1 not to be told here" in said and "**shown**: hidden alignment helps" in said
    assert "hidden_weight = 0" in shown.ran_with() and "(the row `expert_merging` of other tables)" in shown.ran_with()
    assert "w/o hidden alignment − Expert Merging: -50.0 points" in shown.main_figure().alt


def test_a_row_tells_how_far_its_coefficients_came_from_their_start(tmp_path):
    plan = half(tmp_path)
    values = {"a": np.array([[0.5], [0.1]]), "b": np.array([[0.3, 0.7], [0.3, 0.3]]), "c": np.array([[9.0], [9.0]])}
    folder = plan.cells(Job("expert_merging", 0))
    Coefficients(("VQA", "OCR"), values, frozenset("c")).save(folder / "coefficients.json")  # c was not fitted last
    stages = [{"initial": {"VQA": 9.0, "OCR": 9.0}}, {"initial": {"VQA": 0.3, "OCR": 0.3}}]
    (folder / "history.json").write_text(json.dumps({"stages": stages}))
    first, other, same = (line[sweeps.MOVED] for line in sweeps.ran_with(plan))
    assert first == same == f"{(0.2 + 0.2 + 0 + 0.4 + 0 + 0) / 6:.3f}" and other == "not run yet"


def test_table_4_is_the_averages_of_5_to_7(tmp_path):
    summary = Summary("table4", "mini", tmp_path)
    assert [plan.name for plan in summary.plans.values()] == ["table5", "table6", "table7"]
    plan = summary.plans["Mistral"]
    for seed, name in itertools.product((0, 1, 2), plan.benchmarks):
        score(plan, Job("expert_merging", seed), name, 1, 1, 0, 0)
    found = {(line.method, line.benchmark): line.score for line in summary.entries()}
    assert found["Expert Merging", "Mistral"] == found["w/o chunking", "Mistral"] == 50
    assert found["Expert Merging", "Qwen2-VL"] is None
    theirs = tables.published(summary.table)
    assert list(theirs) == [row.label for row in summary.table.rows]


def test_the_notebook_runs_while_a_run_is_under_way(tmp_path):
    plan = half(tmp_path)
    for seed, name in itertools.product((0, 1), plan.benchmarks):
        score(plan, Job("expert_merging", seed), name, *[1] * 6, *[0] * 6)
    notebooks.execute(plan)
    said = plan.notebook.read_text(encoding="utf-8")
    assert "**not run yet**: hidden alignment helps" in said and said.count('"image/png": "') == 1


@each("number", [8, 11])
def test_a_sweep_is_drawn_beside_the_papers_with_the_rows_that_stand(number):
    plan = Plan(f"table{number}")
    lines = [render.Entry(row.label, name) for row in plan.rows.values() for name in [*plan.benchmarks, "Avg"]]
    shown = [*plan.rows.values()][2].label
    lines = [render.Entry(shown, e.benchmark, 40.0, 1.0, 9, 3, "ok") if e.method == shown else e for e in lines]
    picture = sweeps.picture(plan, lines)
    ours, theirs = picture.figure.axes[:2]
    assert [len(axis.lines[0].get_xdata()) for axis in (ours, theirs)] == [1, len(plan.rows)]
    assert list(theirs.lines[0].get_xdata()) == (GAMMAS if number == 8 else SAMPLES)
    assert picture.alt.startswith(f"Average score over {plan.table.sweep.of}. Here: ") and "40.0." in picture.alt


def test_a_scale_that_the_profile_gives_one_of_two_rows_makes_them_two(tmp_path):
    plan = small_plan(tmp_path, rows=HALF, scales={"expert_merging": 0.7})
    assert plan.scored("no_chunking") == "no_chunking" and len(plan.jobs) == 6
