"""How far a run is, how long the rest takes, and what `make status` says of it."""

import io
import json

import pytest
from small_plan import score, small_plan

from emkit import progress
from eval import remaining, signs, status
from eval.__main__ import main
from eval.places import Job
from eval.progress import Display, Stage
from eval.remaining import Clock, Fits, Work


def test_a_fit_counts_as_much_as_all_columns_and_moves_the_bar(tmp_path):
    plan = small_plan(tmp_path)
    jobs = [Job("task_arithmetic", 0), Job("expert_merging", 0)]
    nothing = remaining.work(plan, jobs, lambda path: False, {})
    assert nothing == Work(0, 2 + 2 + 2)
    assert remaining.work(plan, jobs, lambda path: False, {"expert_merging/0": 0.5}) == Work(1, 6)
    asked = plan.cell(jobs[1], "GQA")  # its fit has ended then
    assert remaining.work(plan, jobs, lambda path: path == asked, {"expert_merging/0": 0.5}) == Work(3, 6)


def test_a_second_fit_does_not_move_the_bar_back():
    fits = Fits()
    assert fits.look([signs.Sign("a/0", "calibration, fit step 3/4", 0.0, 3, 4)]) == {"a/0": 0.75}
    assert fits.look([signs.Sign("a/0", "fit step 1/4", 0.0, 1, 4), signs.Sign("b/0", "token 1/9", 0.0, 1, 9)]) == {
        "a/0": 0.75
    }


def test_the_sign_of_a_running_fit_says_how_much_is_done(tmp_path):
    with signs.written(tmp_path, "a/0"), progress.section("a" * 300):
        progress.report("fit step", 8, 80)
        [sign] = signs.running(tmp_path)
        assert Fits().look([sign]) == {"a/0": 0.1}


@pytest.mark.parametrize(
    ("done", "elapsed", "left", "said"),
    [
        (10, 60.0, None, ""),  # nothing was done since the first look
        (11, 60.0, None, ""),  # too little to tell
        (40, 60.0, 120.0, "about 2 min left"),  # 30 in a minute, 60 to do
        (95, 85.0, 5.0, "under a minute left"),
    ],
)
def test_the_time_left_is_at_the_rate_since_the_run_began(done, elapsed, left, said):
    clock = Clock()
    assert clock.left(Work(10, 100), 0.0) is None
    found = clock.left(Work(done, 100), elapsed)
    assert found == pytest.approx(left) if left is not None else found is None
    assert remaining.said(found) == said


def test_the_display_shows_the_share_and_the_time_left():
    stream = io.StringIO()
    stages = [Stage("rows", 0, 10, "cells, 0/1 rows", 0.5)]
    Display(lambda: stages, stream, left=lambda: "about 2 min left").update()
    assert stream.getvalue().splitlines()[0].startswith("rows      " + "█" * 12 + "·" * 12 + " 0/10 cells")


def test_a_watch_counts_what_stood_before_and_what_is_new(tmp_path):
    plan = small_plan(tmp_path)
    score(plan, Job("base", 0), "GQA", 0, 1)
    stood = {plan.cell(Job("base", 0), "GQA")}
    found = {stage.name: stage for stage in remaining.Watch([(plan, stood)], 1e12).count()}
    cells = len(plan.jobs) * 2
    assert found["rows"][:3] == ("rows", 1, cells) and 0 < found["rows"].share < 1
    assert {stage.name: stage for stage in remaining.Watch([(plan, set())], 1e12).count()}[
        "rows"
    ].done == 0  # of an old run


def test_the_status_says_what_stands_and_what_runs(tmp_path, capsys):
    plan = small_plan(tmp_path)
    (plan.data("evaluation")).mkdir(parents=True)
    entries = {name: {"sha256": name} for name in plan.benchmarks}
    (plan.data("evaluation") / "manifest.json").write_text(json.dumps({"benchmarks": entries}))
    for name in plan.benchmarks:
        score(plan, Job("base", 0), name, 0, 1)
    score(plan, Job("expert_merging", 0), "GQA", 0, 1)
    stale = plan.cell(Job("expert_merging", 1), "GQA")
    score(plan, Job("expert_merging", 1), "GQA", 0, 1)
    stale.write_text(stale.read_text().replace('"recipe_sha256": "', '"recipe_sha256": "0'))
    arguments = [str(plan.path), "--profile", str(plan.profile_path), "--results", str(plan.home.parent)]
    with signs.written(plan.signs, "expert_merging/0"):
        progress.report("fit step", 3, 80)
        assert main(["status", *arguments]) == 0
    said = capsys.readouterr().out
    assert said.startswith("Table 1   3/8 cells, 1/4 rows stand; `.venv/bin/python -m eval reproduce"), said
    assert "running   expert_merging/0: fit step 3/80, 0 s ago" in said
    assert main(["show", *arguments]) == 0
    assert "| Base | 50.00" in capsys.readouterr().out
    assert status.text([plan], []).count("\n") == 1


@pytest.mark.parametrize("given", ["0", "-1", "two", "1.5"])
def test_a_number_of_seeds_that_is_none_is_one_clear_line(tmp_path, monkeypatch, capsys, given):
    plan = small_plan(tmp_path)
    monkeypatch.setenv("EMKIT_SEEDS", given)
    assert main(["status", str(plan.path), "--profile", str(plan.profile_path)]) == 2
    assert f"EMKIT_SEEDS is '{given}', not a number of seeds" in capsys.readouterr().err


def test_as_many_seeds_as_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("EMKIT_SEEDS", "5")
    plan = small_plan(tmp_path)
    assert plan.seeds("expert_merging") == [0, 1, 2, 3, 4] and plan.seeds("task_arithmetic") == [0]
