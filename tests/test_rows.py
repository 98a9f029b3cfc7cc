"""The row job, the scale rule and what counts as a finished cell, with a merge and a harness that cost nothing."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from small_plan import ROOT, asked_otherwise, items, score, small_plan
from text_benchmarks import changed

from emkit.errors import UserError
from emkit.files import read_json, write_json
from eval import asking, columns, features, keys, merging, pipeline, rows, scale, scores, times
from eval.judge.errors import NoJudge
from eval.places import EVALUATION, VALIDATION, Job
from eval.vlm import client

RIGHT = "yes"


class Fakes:
    """Stands in for merging, model and harness; counts what was asked of it."""

    def __init__(self, monkeypatch):
        self.merged, self.evaluated, self.broken, self.seconds, self.asked = [], [], {}, set(), []
        monkeypatch.setattr(merging, "merge", self.merge)
        monkeypatch.setattr(
            asking.backbones,
            "get",
            lambda name: SimpleNamespace(load=self.load, generate=self.generate, seeing=lambda processor: processor),
        )
        monkeypatch.setattr(features, "kept", lambda *about: "features")
        monkeypatch.setattr(features, "encodings", lambda *about: "encoded")
        monkeypatch.setattr(client, "prompts", self.prompts)
        monkeypatch.setattr(client, "evaluate", self.evaluate)

    def merge(self, plan, job, out, cache):
        row, scale = job.row, job.scale
        self.merged.append((row, job.seed, scale))
        if "merge" in self.broken:
            raise self.broken["merge"]
        out.mkdir(parents=True)
        (out / "model.safetensors").write_bytes(b"weights")
        write_json(out.parent / "coefficients.json", {"scale": scale})
        self.folder = out
        return {"row": row, "scale": scale, "model_sha256": "of the weights"}

    def load(self, folder, dtype, device):
        self.dtype = dtype
        return (folder / "model.safetensors").read_bytes(), None

    def generate(self, model, processor, images, questions, max_new_tokens, batch_size, answered, features, encoded):
        assert model == b"weights" and (features, encoded) == ("features", "encoded") and batch_size == 64
        return answered(range(len(questions)), lambda: self.asked.append(len(questions)) or [RIGHT for _ in questions])

    def prompts(self, data, column, seconds):
        assert column.prompt_rule == "dataset"
        self.seconds.add(seconds)
        return [SimpleNamespace(index=str(i), image=None, text="?") for i in range(4)]

    def evaluate(self, data, column, predictions, judge_url, seconds):
        self.seconds.add(seconds)
        self.evaluated.append(column.name)
        if column.name in self.broken:
            raise self.broken[column.name]
        assert set(predictions.values()) == {RIGHT}
        return SimpleNamespace(items=items(1, 1, 1, 0), harness={"name": "fake"})


@pytest.fixture
def fakes(monkeypatch):
    return Fakes(monkeypatch)


@pytest.fixture
def plan(tmp_path):
    found = small_plan(tmp_path)
    for split in (EVALUATION, VALIDATION):
        entries = {name: {"sha256": f"{split} {name}"} for name in found.benchmarks}
        write_json(found.manifest(split), {"benchmarks": entries})
        (found.data(split) / "key").write_text(found.data_key(split), encoding="utf-8")
    return found


BASE = Job("base", 0)


def test_a_row_scores_every_benchmark_and_removes_the_merged_weights(plan, fakes):
    rows.run_job(plan, BASE)
    for name in plan.benchmarks:
        cell = scores.read_cell(plan.cell(BASE, name))
        assert (cell.status, cell.value, cell.n) == ("ok", 75.0, 4)
        assert plan.is_valid(BASE, name)
    assert plan.stamp(BASE).is_file()
    assert not fakes.folder.exists() and not fakes.folder.parent.exists()
    assert read_json(plan.cells(BASE) / "merge.json")["row"] == "base"


def test_a_finished_row_merges_nothing_again(plan, fakes):
    rows.run_job(plan, BASE)
    rows.run_job(plan, BASE)
    assert len(fakes.merged) == 1 and len(fakes.evaluated) == 2


def test_a_killed_row_scores_only_what_is_missing(plan, fakes):
    rows.run_job(plan, BASE)
    plan.cell(BASE, "GQA").unlink()
    plan.stamp(BASE).unlink()
    rows.run_job(plan, BASE)
    assert fakes.evaluated == ["VizWiz", "GQA", "GQA"]


def test_the_same_question_about_another_picture_has_an_answer_of_its_own(plan, fakes, monkeypatch):
    """All questions are "?" here, as thousands of a published set are alike; batches of two."""

    def generate(model, processor, images, questions, max_new_tokens, batch_size, answered, features, encoded):
        found = []
        for start in range(0, len(questions), 2):
            found += answered([start, start + 1], lambda start=start: [f"of {start}", f"of {start + 1}"])
        return found

    given = {}
    monkeypatch.setattr(fakes, "generate", generate)
    monkeypatch.setattr(
        client,
        "evaluate",
        lambda data, column, predictions, *more: given.update({column.name: predictions}) or scored(),
    )

    def scored():
        return SimpleNamespace(items=items(1, 1, 1, 0), harness={"name": "fake"})

    rows.run_job(plan, BASE)
    assert given == {name: {str(i): f"of {i}" for i in range(4)} for name in plan.benchmarks}


def test_a_time_that_cannot_be_kept_costs_no_score(plan, fakes):
    (plan.run / "times.jsonl").mkdir(parents=True)
    rows.run_job(plan, BASE)
    assert {scores.read_cell(plan.cell(BASE, name)).status for name in plan.benchmarks} == {"ok"}


def test_the_time_of_a_column_that_was_gone_on_with_is_not_taken_for_the_whole(plan, fakes):
    plan.answers(BASE, "GQA").parent.mkdir(parents=True)
    plan.answers(BASE, "GQA").write_text("")
    rows.run_job(plan, BASE)
    assert set(times.Times.of(plan).found) == {"merge by checkpoint", "VizWiz"}


def test_answers_are_kept_until_they_are_scored(plan, fakes):
    """A judge or harness that fails costs no answers: they are not given again."""
    fakes.broken["GQA"] = NoJudge("nobody is there")
    rows.run_job(plan, BASE)
    assert (fakes.asked, scores.read_cell(plan.cell(BASE, "GQA")).status) == ([4, 4], "no judge")
    assert plan.answers(BASE, "GQA").is_file() and not plan.answers(BASE, "VizWiz").exists()
    del fakes.broken["GQA"]
    rows.run_job(plan, BASE)
    assert (fakes.asked, scores.read_cell(plan.cell(BASE, "GQA")).status) == ([4, 4], "ok")
    assert not plan.answers(BASE, "GQA").exists()


def test_a_device_without_enough_memory_is_one_line_that_says_what_to_lower(plan, fakes, monkeypatch):
    def full(*about, **more):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has …")

    monkeypatch.setattr(fakes, "generate", full)
    rows.run_job(plan, BASE)
    cell = scores.read_cell(plan.cell(BASE, "GQA"))
    assert cell.status == "failed" and "64 questions answered at once: answer fewer" in cell.reason


@pytest.mark.parametrize("what", ["data", "code", "items", "half a file"])
def test_a_cell_of_other_data_code_or_items_is_scored_again(plan, fakes, monkeypatch, what):
    rows.run_job(plan, BASE)
    path = plan.cell(BASE, "GQA")
    if what == "data":
        manifest = read_json(plan.manifest(EVALUATION))
        manifest["benchmarks"]["GQA"]["sha256"] = "drawn anew"
        write_json(plan.manifest(EVALUATION), manifest)
    elif what == "code":
        monkeypatch.setattr(keys, "versions", lambda libraries=(): {"torch": "another"})
    elif what == "items":
        scores.items_path(path).write_text("", encoding="utf-8")
    else:
        path.write_text(path.read_text(encoding="utf-8")[:40], encoding="utf-8")
    assert not plan.is_valid(BASE, "GQA")
    rows.run_job(plan, BASE)
    assert plan.is_valid(BASE, "GQA")
    assert fakes.evaluated == (["VizWiz", "GQA"] * 2 if what == "code" else ["VizWiz", "GQA", "GQA"])


def test_another_method_setting_makes_only_its_own_row_stale(tmp_path, fakes):
    plan = small_plan(tmp_path)
    write_json(plan.manifest(EVALUATION), {"benchmarks": {name: {"sha256": name} for name in plan.benchmarks}})
    write_json(plan.scale_file("task_arithmetic"), {"scale": 0.1})
    learned = Job("expert_merging", 0)
    for job in (BASE, learned):
        rows.run_job(plan, job)
    methods_of = {name: dict(settings) for name, settings in plan.profile.methods.items()}
    methods_of["expert_merging"]["gamma"] = 3.0
    changed = small_plan(tmp_path, methods=methods_of)
    assert changed.is_done(BASE) and not changed.is_done(learned)
    write_json(plan.scale_file("task_arithmetic"), {"scale": 0.5})
    assert plan.is_done(BASE) and not plan.is_done(learned)


def test_a_failed_merge_becomes_failed_cells_with_its_reason(plan, fakes):
    fakes.broken["merge"] = UserError("the fit diverged at step 3")
    rows.run_job(plan, BASE)
    cells = [scores.read_cell(plan.cell(BASE, name)) for name in plan.benchmarks]
    assert {(cell.status, cell.reason) for cell in cells} == {("failed", "merging: the fit diverged at step 3")}
    assert plan.stamp(BASE).is_file() and not plan.is_done(BASE)


def test_one_failed_benchmark_leaves_the_others_alone_and_is_tried_again(plan, fakes, capsys):
    fakes.broken["VizWiz"] = RuntimeError("two\nlines")
    rows.run_job(plan, BASE)
    assert scores.read_cell(plan.cell(BASE, "VizWiz")).reason == "scoring: two lines"
    assert scores.read_cell(plan.cell(BASE, "GQA")).status == "ok"
    del fakes.broken["VizWiz"]
    rows.run_job(plan, BASE)
    assert plan.is_done(BASE) and fakes.evaluated == ["VizWiz", "GQA", "VizWiz"]


def test_a_model_answers_in_the_protocols_dtype_and_in_float32_unless_told(plan, fakes):
    rows.run_job(plan, BASE)
    assert fakes.dtype == torch.float32
    before = plan.expected(BASE, "GQA")["recipe_sha256"]
    asked_otherwise(plan, generation=columns.Generation(dtype="bfloat16"))
    assert plan.expected(BASE, "GQA")["recipe_sha256"] != before
    rows.run_job(plan, BASE)
    assert fakes.dtype == torch.bfloat16 and len(fakes.merged) == 2


def test_the_harness_has_the_time_that_the_protocol_gives_it(plan, fakes):
    rows.run_job(plan, BASE)
    assert fakes.seconds == {client.REQUEST_SECONDS}
    fakes.seconds.clear()
    asked_otherwise(plan, request_seconds=60)
    rows.run_job(plan, plan.points("task_arithmetic")[0])
    assert fakes.seconds == {60}


def test_no_judge_is_a_status_of_its_own(plan, fakes):
    fakes.broken["GQA"] = client.NoJudge("no key")
    rows.run_job(plan, BASE)
    cell = scores.read_cell(plan.cell(BASE, "GQA"))
    assert (cell.status, cell.reason, cell.value) == ("no judge", "no key", None)


def test_a_learned_row_uses_the_chosen_scale_and_keeps_its_coefficients(plan, fakes):
    write_json(plan.scale_file("task_arithmetic"), {"scale": 0.3})
    rows.run_job(plan, Job("expert_merging", 1))
    assert fakes.merged == [("expert_merging", 1, 0.3)]
    assert read_json(plan.cells(Job("expert_merging", 1)) / "coefficients.json") == {"scale": 0.3}


def test_points_of_the_grid_are_scored_on_the_validation_split(plan, fakes):
    for point in plan.points("task_arithmetic"):
        rows.run_job(plan, point)
    assert fakes.merged == [("task_arithmetic", 0, 0.1), ("task_arithmetic", 0, 0.5)]
    cell = scores.read_cell(plan.cell(plan.points("task_arithmetic")[0], "GQA"))
    assert cell.data_sha256 == "validation GQA"
    assert not plan.cell(Job("task_arithmetic", 0), "GQA").exists()


# ---- which jobs there are
def test_a_plan_imports_neither_what_draws_nor_what_loads_models(tmp_path):
    """Every small step makes one, and pays for its imports."""
    code = "from eval.plan import Plan; Plan('table1', 'smoke').protocol; import sys; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"matplotlib", "transformers", "vlmeval", "pandas"} & set(run.stdout.split())


def test_random_rows_run_with_every_seed_and_others_once(plan):
    assert [job.name for job in plan.jobs] == ["base/0", "task_arithmetic/0", "expert_merging/0", "expert_merging/1"]
    assert plan.scale_rows == ["task_arithmetic"]
    assert [plan.scale_row(row) for row in ("base", "expert_merging")] == [None, "task_arithmetic"]


def test_rows_with_dare_run_with_every_seed_at_the_scale_of_the_first(tmp_path):
    rows_ = [
        {"id": "ta_dare", "label": "TA w/ DARE", "method": "ta_dare"},
        {"id": "ties", "label": "TIES Merging", "method": "ties"},
        {"id": "wudi", "label": "WUDI Merging", "method": "wudi"},
    ]
    plan = small_plan(tmp_path, rows=rows_)
    assert [job.name for job in plan.jobs] == ["ta_dare/0", "ta_dare/1", "ties/0", "wudi/0"]
    assert plan.scale_rows == ["ta_dare", "ties"] and {point.seed for point in plan.points("ta_dare")} == {0}
    write_json(plan.scale_file("ta_dare"), {"scale": 0.4})
    assert [plan.resolved(job).scale for job in plan.jobs] == [0.4, 0.4, None, None]


def test_another_option_makes_only_its_own_row_stale(tmp_path, fakes):
    rows_ = [{"id": name, "label": name, "method": name} for name in ("tsv", "wudi")]
    plan = small_plan(tmp_path, rows=rows_)
    write_json(plan.manifest(EVALUATION), {"benchmarks": {name: {"sha256": name} for name in plan.benchmarks}})
    for job in plan.jobs:
        rows.run_job(plan, job)
    rows_[1]["options"] = {"lr": 0.5}
    changed = small_plan(tmp_path, rows=rows_)
    assert [changed.is_done(job) for job in changed.jobs] == [True, False]


def test_a_fixed_scale_needs_no_points(tmp_path):
    rows_ = [{"id": "ta", "label": "TA", "method": "task_arithmetic", "scale": 0.1}]
    plan = small_plan(tmp_path, rows=rows_)
    assert plan.scale_rows == [] and plan.resolved(plan.jobs[0]).scale == 0.1


def test_a_learned_row_starts_from_task_arithmetics_scale_given_shown_or_neither(tmp_path):
    learned = {"id": "em", "label": "EM", "method": "expert_merging"}
    given = {"id": "ta", "label": "TA", "method": "task_arithmetic", "scale": 0.1}
    plan = small_plan(tmp_path, rows=[given, learned])
    assert plan.scale_rows == [] and plan.chosen_scale("em") == 0.1
    alone = small_plan(tmp_path, rows=[learned])
    assert alone.scale_rows == ["task_arithmetic"] and alone.chosen_scale("em") is None
    assert [job.row for job in alone.jobs] == ["em", "em"]  # Task Arithmetic is scored on validation items alone
    write_json(alone.scale_file("task_arithmetic"), {"scale": 0.5})
    assert alone.chosen_scale("em") == 0.5
    assert small_plan(tmp_path, rows=[learned], scales={"task_arithmetic": 0.3}).chosen_scale("em") == 0.3


def test_an_unknown_benchmark_is_an_error(tmp_path):
    with pytest.raises(UserError, match="unknown benchmark 'VizViz'"):
        _ = small_plan(tmp_path, columns=["VizViz"]).protocol


# ---- the scale rule
@pytest.mark.parametrize(
    ("curve", "chosen"),
    [({0.1: 40.0, 0.5: 41.0}, 0.5), ({0.1: 41.0, 0.5: 40.0}, 0.1), ({0.1: 41.0, 0.5: 41.0, 0.3: 41.0}, 0.1)],
)
def test_the_best_mean_wins_and_the_smaller_scale_on_ties(curve, chosen):
    assert scale.best(curve) == chosen


def test_the_choice_is_made_from_the_mean_over_benchmarks(plan):
    low, high = plan.points("task_arithmetic")
    score(plan, low, "VizWiz", 1, 1, 0, 0)
    score(plan, low, "GQA", 0, 0, 0, 0)
    score(plan, high, "VizWiz", 1, 0, 0, 0)
    score(plan, high, "GQA", 1, 1, 0, 0)
    scale.write(plan, "task_arithmetic")
    choice = read_json(plan.scale_file("task_arithmetic"))
    assert choice["scale"] == 0.5 and [point["mean"] for point in choice["curve"]] == [25.0, 37.5]
    assert scale.is_current(plan, "task_arithmetic")
    score(plan, low, "GQA", 1, 1, 1, 1)
    assert not scale.is_current(plan, "task_arithmetic")


def test_a_failed_point_leaves_no_choice(plan):
    low, high = plan.points("task_arithmetic")
    for name in plan.benchmarks:
        score(plan, low, name, 1, 0)
        score(plan, high, name, 1, 0)
    about = {"row": "task_arithmetic", "seed": 0, "benchmark": "GQA"}
    scores.write_unscored(plan.cell(high, "GQA"), "failed", "scoring: no", **about)
    with pytest.raises(UserError, match=r"no scale for task_arithmetic: GQA at 0\.5 failed"):
        scale.write(plan, "task_arithmetic")
    assert not plan.scale_file("task_arithmetic").exists()


# ---- what a run does before and after its jobs
def test_stamps_without_valid_cells_are_removed(plan, fakes):
    rows.run_job(plan, BASE)
    rows.run_job(plan, Job("expert_merging", 0))
    plan.cell(Job("expert_merging", 0), "GQA").unlink()
    standing = pipeline.prune(plan)
    assert plan.stamp(BASE).is_file() and not plan.stamp(Job("expert_merging", 0)).exists()
    assert plan.cell(BASE, "GQA") in standing


def test_data_of_another_protocol_are_removed(plan):
    plan.protocol = changed(plan.protocol, "GQA", n=11)
    pipeline.prune(plan)
    assert not plan.manifest(EVALUATION).exists()


def test_failed_cells_end_the_run_with_an_error(plan, fakes, capsys):
    write_json(plan.scale_file("task_arithmetic"), {"scale": 0.1})
    fakes.broken["GQA"] = RuntimeError("no")
    for job in plan.jobs:
        rows.run_job(plan, job)
    assert pipeline.report(plan) == 1
    said = capsys.readouterr().err
    assert "4 cells have no score, the first: base/0 GQA: failed: scoring: no" in said
    assert f"`{plan.command}` tries them again" in said.splitlines()[-1]


def test_fits_and_calibration_sets_of_other_code_or_tokenizers_are_not_reused(tmp_path, monkeypatch):
    plan = small_plan(tmp_path)
    before = plan.cache
    monkeypatch.setattr(keys, "versions", lambda libraries=(): {"torch": "another"})
    assert plan.cache != before
    monkeypatch.undo()
    monkeypatch.setattr(keys, "model_identity", lambda name, fetched: f"{name} with another tokenizer")
    assert plan.cache != before


def test_a_benchmark_file_that_changed_or_is_gone_is_drawn_again(tmp_path):
    plan = small_plan(tmp_path)
    folder = plan.data(EVALUATION)
    folder.mkdir(parents=True)
    (folder / "GQA.tsv").write_text("index\n0\n", encoding="utf-8")
    write_json(plan.manifest(EVALUATION), {"files": {"GQA.tsv": keys.file_identity(folder / "GQA.tsv")}})
    (folder / "key").write_text(plan.data_key(EVALUATION), encoding="utf-8")
    assert plan.data_is_current(EVALUATION)
    (folder / "GQA.tsv").write_text("index\n1\n", encoding="utf-8")
    assert not plan.data_is_current(EVALUATION)
    (folder / "GQA.tsv").unlink()
    assert not plan.data_is_current(EVALUATION)


@pytest.mark.parametrize("change", [{"judge_upstream": "https://example.org/v1"}, {"judge_model": "another"}])
def test_another_judge_makes_judged_cells_stale_and_no_others(tmp_path, change):
    plan = small_plan(tmp_path, columns=["MathVista", "GQA"])
    before = {name: plan.expected(BASE, name)["recipe_sha256"] for name in plan.benchmarks}
    asked_otherwise(plan, **change)
    after = {name: plan.expected(BASE, name)["recipe_sha256"] for name in plan.benchmarks}
    assert before["GQA"] == after["GQA"] and before["MathVista"] != after["MathVista"]


def test_a_table_that_breaks_off_does_not_keep_the_next_one_waiting(tmp_path, monkeypatch):
    plans = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        plans.append(small_plan(tmp_path / name))
    ran = []

    def broken(plan, *rest):
        ran.append(plan)
        if plan is plans[0]:
            raise UserError("a job broke off")

    for name in ("announce_judge", "publish"):
        monkeypatch.setattr(pipeline, name, lambda plan: None)
    monkeypatch.setattr(pipeline.models, "check", lambda plan: None)
    monkeypatch.setattr(pipeline, "_snakemake", broken)
    with pytest.raises(UserError, match="Table 1: a job broke off"):
        pipeline.reproduce(plans, 1)
    assert ran == plans
