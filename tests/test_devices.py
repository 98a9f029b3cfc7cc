"""A GPU for each job; and one line where there is none. No GPU is needed: what torch says of them stands in."""

import os
import queue
import subprocess
import sys
import threading

import pytest
import torch
from small_plan import ROOT, TABLE, smoke, write

from emkit.errors import UserError
from emkit.job import Job
from eval import devices, pipeline
from eval.__main__ import main
from eval.lm import client
from eval.plan import Plan


@pytest.fixture
def gpus(monkeypatch):
    """As if there were so many GPUs."""

    def given(count):
        monkeypatch.delenv(devices.VISIBLE, raising=False)

        def counted():
            named = os.environ.get(devices.VISIBLE)
            return count if named is None else min(count, len([name for name in named.split(",") if name]))

        monkeypatch.setattr(torch.cuda, "device_count", counted)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: counted() > 0)

    return given


@pytest.mark.parametrize(
    ("cuda", "hidden", "driver", "said"),
    [
        (None, None, False, "built without CUDA; install"),
        ("13.0", "", True, "hides every GPU; unset CUDA_VISIBLE_DEVICES"),
        ("13.0", "-1", True, "hides every GPU; unset CUDA_VISIBLE_DEVICES"),
        ("13.0", None, False, "no NVIDIA driver on this machine; run it on a machine with one"),
        ("13.0", None, True, "cannot use the driver of this machine; see what `nvidia-smi` says"),
    ],
)
def test_where_there_is_no_gpu_the_line_says_why(gpus, monkeypatch, tmp_path, cuda, hidden, driver, said):
    gpus(0)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    (tmp_path / "version").write_text("NVRM")
    monkeypatch.setattr(devices, "_DRIVER", tmp_path / ("version" if driver else "none"))
    if hidden is not None:
        monkeypatch.setenv(devices.VISIBLE, hidden)
    with pytest.raises(UserError, match=said):
        devices.check("cuda")
    devices.check("cpu")


JOB = """
import os, torch
torch.cuda.device_count = lambda: 2
from eval import devices
print("ready", flush=True)
devices.take("cuda")
devices.take("cuda")  # the next job of this process has the same
print(os.environ[devices.VISIBLE], flush=True)
input()
"""


def test_each_job_has_a_gpu_of_its_own_and_a_third_waits():
    about = {"cwd": ROOT, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    known = {key: value for key, value in os.environ.items() if key != devices.VISIBLE}
    jobs = [subprocess.Popen([sys.executable, "-c", JOB], env=known, **about) for _ in range(3)]
    said: queue.Queue = queue.Queue()
    try:
        for job in jobs:
            threading.Thread(target=lambda job=job: [said.put((job, line.strip())) for line in job.stdout]).start()
        heard = [said.get(timeout=120) for _ in range(5)]  # three are ready, two have a GPU
        running = {job: line for job, line in heard if line != "ready"}
        assert sorted(running.values()) == ["0", "1"]
        with pytest.raises(queue.Empty):
            said.get(timeout=1)
        first = next(iter(running))
        first.kill()  # a lock ends with its holder, however that ends
        then, line = said.get(timeout=60)
        assert then not in running and line == running[first]
    finally:
        for job in jobs:
            job.kill()
            job.wait()


@pytest.fixture
def untaken(monkeypatch):
    """A process that has no GPU yet."""
    monkeypatch.setattr(devices, "_taken", [])


def test_of_the_gpus_that_a_person_names_those_alone_are_taken(gpus, untaken, monkeypatch):
    gpus(4)
    monkeypatch.setenv(devices.VISIBLE, "2,3")
    assert devices.visible() == ["2", "3"]
    devices.take("cuda")
    assert os.environ[devices.VISIBLE] in ("2", "3")


@pytest.mark.parametrize(("device", "named"), [("cpu", None), ("cuda:1", None), ("cuda", "3")])
def test_a_job_that_has_no_choice_chooses_nothing(gpus, untaken, monkeypatch, device, named):
    """On the CPU, on a GPU that the profile numbers, and on the one that a cluster gave."""
    gpus(4)
    if named is not None:
        monkeypatch.setenv(devices.VISIBLE, named)
    devices.take(device)
    assert os.environ.get(devices.VISIBLE) == named


@pytest.mark.parametrize(("usable", "said"), [(0, None), (1, "cannot use the driver")])
def test_looking_for_a_gpu_does_not_begin_cuda_here(gpus, monkeypatch, tmp_path, usable, said):
    """Which would fix what this process sees, before it has taken its own."""
    gpus(2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("this begins CUDA"))
    monkeypatch.setattr(devices.subprocess, "run", lambda *given, **more: subprocess.CompletedProcess(given, usable))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    (tmp_path / "version").write_text("NVRM")
    monkeypatch.setattr(devices, "_DRIVER", tmp_path / "version")
    if said is None:
        devices.check("cuda")
    else:
        with pytest.raises(UserError, match=said):
            devices.check("cuda")


def test_a_worker_is_of_one_gpu(tmp_path, monkeypatch):
    sockets = []
    for name in ("0", "1"):
        monkeypatch.setenv(devices.VISIBLE, name)
        made = client._service(tmp_path)
        assert made.environment[devices.VISIBLE] == name
        sockets.append(made.socket_path)
    assert sockets[0] != sockets[1]


def test_as_many_rows_at_once_as_there_are_gpus(gpus, tmp_path):
    gpus(3)
    table, profile = write(tmp_path, TABLE, smoke(device="cuda"))
    plan = Plan(table, profile, tmp_path / "results")
    assert pipeline._gpus(plan, []) == ["--resources=gpu=3"]
    assert pipeline._gpus(plan, ["--resources", "gpu=1"]) == []
    assert pipeline._gpus(plan, ["--profile", "slurm"]) == pipeline._gpus(plan, ["--executor=slurm"]) == []
    on_cpu = Plan(*write(tmp_path, TABLE, smoke()), tmp_path / "results")
    assert pipeline._gpus(on_cpu, []) == []


@pytest.mark.parametrize(("device", "takes"), [("cuda", True), ("cpu", False)])
def test_snakemake_is_told_which_jobs_take_a_gpu(tmp_path, device, takes):
    table, profile = write(tmp_path, TABLE, smoke(device=device))
    given = ["--config", f"table={table}", f"profile={profile}", f"results={tmp_path / 'results'}"]
    command = [sys.executable, "-m", "snakemake", "--snakefile", "Snakefile", "--dry-run", "--cores", "2", *given]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    rules = (done.stdout + done.stderr).split("\nrule ")
    of_rows = [rule for rule in rules if rule.startswith(("row:", "curve:", "localrule row", "localrule curve"))]
    assert of_rows and all(("gpu=1" in rule) == takes for rule in of_rows)
    assert not any("gpu=1" in rule for rule in rules if rule not in of_rows)


def test_without_a_gpu_nothing_is_begun(gpus, tmp_path, capsys):
    gpus(0)
    table, profile = write(tmp_path, TABLE, smoke(device="cuda"))
    assert main(["reproduce", str(table), "--profile", str(profile), "--results", str(tmp_path / "results")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: no GPU for `device: cuda`: ")
    assert not (tmp_path / "results").exists()


def test_a_fit_without_enough_memory_says_what_takes_less():
    class Full:
        @staticmethod
        def run(context):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has …")

    class Context:
        device = "cuda"

    with pytest.raises(UserError, match="out of memory on cuda: a fit takes less with --dtype bfloat16") as raised:
        Job(Full, Context).run()
    assert "\n" not in str(raised.value)
