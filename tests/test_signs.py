"""Signs of life: what a job says it is at moves on, reaches the display, and ends with the job, however it ends."""

import io
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import merge_row, recipe_data, save_recipe
from small_plan import small_plan

from emkit.files import write_json
from emkit.progress import passes, report, section, told
from eval import merging, progress, rows, signs
from eval.places import EVALUATION, Job
from eval.progress import Display

ROOT = Path(__file__).parent.parent


def heard(call) -> list[tuple[str, int, int]]:
    """What is reported while ``call`` runs."""
    found = []
    with told(lambda *sign: found.append(sign)):
        call()
    return found


# ---- what a merge reports
def test_a_learned_row_reports_every_sample_every_step_and_every_tensor(tiny_zoo, tmp_path):
    recipe = save_recipe(tmp_path, recipe_data(tiny_zoo))
    row = ("expert_merging", 0, tmp_path / "out" / "model", tmp_path / "cache", 0.3)
    found = heard(lambda: merge_row(recipe, *row))
    steps = recipe.profile.methods["expert_merging"]["optimiser"]["steps"]
    assert [sign[1:] for sign in found if sign[0] == "fit step"] == [(step, steps) for step in range(steps)]
    samples = [sign[0] for sign in found if sign[0].startswith("calibration ")]
    wanted = [f"calibration {task}, sample {n} of 2" for task in ("VQA", "Chart") for n in (1, 2)]
    assert list(dict.fromkeys(re.match(r"calibration \w+, sample \d of \d", text)[0] for text in samples)) == wanted
    assert any("token 2 of answers" in text for text in samples)  # a long generation moves, too
    tensors = [sign[1:] for sign in found if sign[0] == "model.safetensors, tensor"]
    assert tensors == [(n, len(tensors)) for n in range(1, len(tensors) + 1)] and len(tensors) > 10


def test_reports_change_no_byte_of_a_merge(tiny_zoo, tmp_path):
    recipe = save_recipe(tmp_path, recipe_data(tiny_zoo))
    written = []
    for name in ("silent", "heard"):
        out = tmp_path / name / "model"
        row = ("expert_merging", 0, out, tmp_path / name / "cache", 0.3)
        if name == "heard":
            heard(lambda row=row: merge_row(recipe, *row))
        else:
            merge_row(recipe, *row)
        written.append([(out / "model.safetensors").read_bytes(), (out.parent / "history.json").read_bytes()])
    assert written[0] == written[1]


def test_sections_nest_and_end_also_by_an_error():
    def call():
        with section("outer"), section("inner"):
            report("here", 1, 2)
        with pytest.raises(ValueError, match="no"), section("broken"):
            raise ValueError("no")
        report("after")

    assert heard(call) == [("outer, inner, here", 1, 2), ("after", 0, 0)]


def test_passes_of_a_model_are_counted_and_the_model_is_left_as_it_was():
    model = torch.nn.Linear(2, 2)

    def call():
        with passes(model, "answers", 64, 200):
            for _ in range(2):
                model(torch.zeros(1, 2))
        model(torch.zeros(1, 2))

    assert heard(call) == [("token 1 of answers", 64, 200), ("token 2 of answers", 64, 200)]
    assert not model._forward_pre_hooks


# ---- the file
def test_a_row_job_leaves_signs_while_it_runs_and_none_after(tmp_path, monkeypatch):
    plan = small_plan(tmp_path)
    write_json(plan.manifest(EVALUATION), {"benchmarks": {name: {"sha256": name} for name in plan.benchmarks}})
    seen = []

    def merge(*about, **more):
        for step in range(3):
            report("fit step", step, 3)
            seen.extend(signs.running(plan.signs))
        raise ValueError("that is enough")

    monkeypatch.setattr(merging, "merge", merge)
    rows.run_job(plan, Job("base", 0))
    assert [(sign.job, sign.text) for sign in seen] == [("base/0", f"fit step {step}/3") for step in range(3)]
    assert seen[0].at <= seen[1].at <= seen[2].at
    assert signs.running(plan.signs) == [] and not list(plan.signs.rglob("*.sign"))


def test_two_jobs_have_a_sign_each(tmp_path):
    with signs.written(tmp_path, "ties/0"), signs.written(tmp_path, "task_arithmetic/0.1"):
        assert [sign.job for sign in signs.running(tmp_path)] == ["task_arithmetic/0.1", "ties/0"]
    with signs.written(tmp_path, "task_arithmetic/0.1"):  # a name with a point is not cut
        assert [path.name for path in tmp_path.rglob("*.sign")] == ["0.1.sign"]


JOB = """
import sys, time
from pathlib import Path
from emkit.progress import report
from eval import signs
with signs.written(Path(sys.argv[1]), "expert_merging/0"):
    report("fit step", 7, 60)
    print("there", flush=True)
    time.sleep(600)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_file_of_a_killed_job_is_no_sign_of_life(tmp_path, how):
    job = subprocess.Popen([sys.executable, "-c", JOB, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert job.stdout.readline() == "there\n"
        [alive] = signs.running(tmp_path)
        assert alive.line(alive.at + 95.2) == "expert_merging/0: fit step 7/60, 95 s ago"
    finally:
        job.send_signal(how)
        job.wait()
    assert list(tmp_path.rglob("*.sign")) and signs.running(tmp_path) == []


def test_a_file_that_is_no_sign_is_passed_over(tmp_path):
    with signs.written(tmp_path, "base/0"):
        (tmp_path / "base" / "0.sign").write_text("{", encoding="utf-8")
        assert signs.running(tmp_path) == []
    assert signs.running(tmp_path / "absent") == []


# ---- the display
class Terminal(io.StringIO):
    def isatty(self):
        return True


def display(stream, said, stages=(("rows", 3, 12, "cells, 1/4 rows"),)):
    return Display(lambda: list(stages), stream, signs=lambda: list(said))


def test_a_log_gets_a_bar_and_its_jobs_now_and_then(monkeypatch):
    clock, stream, said = [1000.0], io.StringIO(), ["a/0: fit step 0/60, 0 s ago"]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    shown = display(stream, said)
    for second in range(121):
        said[0] = f"a/0: fit step {second // 2}/60, 0 s ago"
        shown.update()
        clock[0] += 1
    lines = stream.getvalue().splitlines()
    assert [line.split()[0] for line in lines] == ["rows", "a/0:"] * 5  # at 0, 30, 60, 90 and 120 s
    assert lines[1::2] == [f"  a/0: fit step {step}/60, 0 s ago" for step in (0, 15, 30, 45, 60)]
    assert "\033" not in stream.getvalue() and "\r" not in stream.getvalue()


def test_every_stage_in_progress_has_its_bar():
    """Rows whose λ is known begin while other rows' is still searched."""
    stream = Terminal()
    display(
        stream, ["a/0: fit step 1/60, 0 s ago"], [("scale", 3, 12, ""), ("rows", 2, 8, ""), ("table", 0, 1, "")]
    ).update()
    bars = [line.split() for line in screen(stream.getvalue())]
    assert [(bar[0], bar[2]) for bar in bars[:2]] == [("scale", "3/12"), ("rows", "2/8")] and bars[2][0] == "a/0:"
    stream = Terminal()
    display(stream, [], [("scale", 0, 12, ""), ("rows", 0, 8, "")]).update()
    assert [line.split()[0] for line in screen(stream.getvalue())] == ["scale"]


def test_a_log_is_not_told_the_same_twice(monkeypatch):
    clock, stream = [1000.0], io.StringIO()
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    shown = display(stream, ["a/0: fit step 1/60, 0 s ago"])
    for _ in range(200):
        shown.update()
        clock[0] += 1
    assert len(stream.getvalue().splitlines()) == 2


def screen(text: str) -> list[str]:
    """What a terminal shows after ``text``: carriage return, erase to the end, cursor up, line feed."""
    lines, row, column = [""], 0, 0
    for token in re.findall(r"\033\[\d*[AJ]|[\r\n]|[^\033\r\n]+", text):
        if token == "\r":
            column = 0
        elif token == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif token.endswith("J") and token.startswith("\033"):
            lines[row:] = [lines[row][:column]]
        elif token.endswith("A") and token.startswith("\033"):
            row -= int(token[2:-1])
        else:
            lines[row] = lines[row][:column] + token
            column += len(token)
    return lines


def test_a_terminal_shows_the_jobs_below_the_bar_and_rewrites_both():
    stream, said = Terminal(), ["a/0: fit step 1/60, 0 s ago", "b/0: " + "long " * 40]
    shown = display(stream, said)
    for step in range(1, 4):
        said[0] = f"a/0: fit step {step}/60, 0 s ago"
        shown.update()
    lines = screen(stream.getvalue())
    assert len(lines) == 3 and lines[0].startswith("rows ") and lines[1] == "  a/0: fit step 3/60, 0 s ago"
    assert all(len(line) < progress.COLUMNS for line in lines)
    said.pop()
    shown.update()
    assert len(screen(stream.getvalue())) == 2
    shown.update(last=True)
    assert screen(stream.getvalue()) == [""]
