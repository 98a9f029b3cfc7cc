"""`make … PROFILE_ARGS="--profile slurm"` on a real Slurm, all of it on the loopback interface: one row a job.

Needs Debian's slurmctld, slurmd, slurm-client and munge, and root (slurmd starts jobs). Not in the default suite, as it
would need what most machines lack: `make test-slurm` runs it, and fails where something is missing.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_pipeline import PROFILE, clone, few, results

from eval.places import Job
from eval.plan import Plan

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(2400)]
TABLE = Path("few/cluster.yaml")
ROWS = ("base", "vqa", "task_arithmetic", "expert_merging", "expert_merging_pp")
SYSTEM = Path("/etc/slurm/slurm.conf")
LIMIT = 900  # seconds that something may take on a busy machine
CONFIG = """
ClusterName=loopback
SlurmctldHost=localhost(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldPort=16817
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
SlurmdTimeout=15
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
NodeName=n[1-2] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[16821-16822] CPUs=1 RealMemory=12000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


class Cluster:
    """Two nodes, each with one core, and their controller."""

    def __init__(self, folder: Path):
        self.folder, self.daemons = folder, {}
        (folder / "state").mkdir()
        # jobs are started without Slurm's variables, so they look for the usual file
        assert not SYSTEM.exists(), f"{SYSTEM} is there: this machine has a Slurm of its own"
        SYSTEM.parent.mkdir(exist_ok=True)
        SYSTEM.write_text(CONFIG.format(folder=folder))
        (folder / "key").write_bytes(os.urandom(1024))
        (folder / "key").chmod(0o400)
        self.environment = os.environ | {"PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
        own = [f"--{name}={folder / file}" for name, file in MUNGE.items()]
        self.start("munged", "munged", "--foreground", "--force", *own)
        wait(lambda: (folder / "munge.sock").exists(), "munged")
        self.start("slurmctld", "slurmctld", "-D")
        for node in ("n1", "n2"):
            self.start(node, "slurmd", "-D", "-N", node)
        wait(lambda: self.says("sinfo", "-h", "-o", "%D %t") == "2 idle", "two idle nodes")

    def start(self, name: str, *command: str) -> None:
        with open(self.folder / f"{name}.out", "ab") as out:
            self.daemons[name] = subprocess.Popen(
                command, env=self.environment, stdout=out, stderr=out, start_new_session=True
            )

    def says(self, *command: str) -> str:
        run = subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)
        return run.stdout.strip()

    def where(self, row: str) -> tuple[str, str] | None:
        """Node and number of the job that runs a row; Snakemake's plugin says in its comment which row it is."""
        for line in self.says("squeue", "-h", "-t", "running", "-o", "%N|%i|%k").splitlines():
            node, number, comment = line.split("|", 2)
            if row in comment:
                return node, number
        return None

    def lose(self, node: str, number: str) -> None:
        """The node goes away: its daemon and all of its job die at once."""
        self.daemons[node].kill()
        self.daemons[node].wait()
        for process in processes():
            if f"SLURM_JOB_ID={number}" in said(process, "environ") or f"[{number}." in "".join(
                said(process, "cmdline")
            ):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)

    def stop(self) -> None:
        self.says("scancel", "--user", "root")
        SYSTEM.unlink(missing_ok=True)
        for daemon in reversed(self.daemons.values()):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(daemon.pid, signal.SIGKILL)
            daemon.wait()


MUNGE = {
    "key-file": "key",
    "socket": "munge.sock",
    "pid-file": "munge.pid",
    "log-file": "munge.log",
    "seed-file": "seed",
}


def wait(reached, what: str, seconds: float = 60) -> None:
    began = time.monotonic()
    while not reached():
        assert time.monotonic() - began < seconds, f"it never came to that: {what}"
        time.sleep(0.2)


def processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def said(process: int, file: str) -> list[str]:
    """The strings of a process's command line or environment; of one that has gone, none."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/{file}").read_bytes().decode(errors="replace").split("\0")
    return []


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    missing = [name for name in ("munged", "slurmctld", "slurmd", "sbatch") if shutil.which(name) is None]
    assert not missing, f"not installed: {', '.join(missing)} (Debian: slurmctld slurmd slurm-client munge)"
    assert os.getuid() == 0, "slurmd starts jobs as root only"
    found = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        yield found
    finally:
        found.stop()


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    folder = clone(tmp_path_factory.mktemp("fresh") / "clone")
    few(folder / TABLE, "table1", ROWS, ["VizWiz", "RefCOCO"])
    return folder


def reproduce(folder: Path, environment, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "eval", "reproduce", str(TABLE), "--profile", PROFILE, "--jobs", "2", *more]
    with open(folder / "output", "ab") as out:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=out, start_new_session=True)


def ended(folder: Path, process: subprocess.Popen) -> None:
    try:
        status = process.wait(timeout=LIMIT)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    logs = [path.read_text(errors="replace")[-6000:] for path in folder.glob("results/smoke/.run/*/log/*.log")]
    assert status == 0, (folder / "output").read_text() + "".join(logs)


@pytest.fixture(scope="module")
def local(fresh, tmp_path_factory):
    """A run without a cluster."""
    folder = shutil.copytree(fresh, tmp_path_factory.mktemp("local") / "clone")
    ended(folder, reproduce(folder, os.environ | {"PYTHONPATH": ""}))
    return folder


def test_a_job_that_fails_is_tried_again_and_a_node_that_goes_away_loses_nothing(
    cluster, local, fresh, tmp_path, monkeypatch
):
    folder = shutil.copytree(fresh, tmp_path / "clone")
    shutil.copytree(local / "results/smoke/zoo", folder / "results/smoke/zoo")  # trained alike; a minute
    monkeypatch.chdir(folder)
    plan = Plan(TABLE, PROFILE)
    run = reproduce(
        folder, cluster.environment, "--snakemake", "--profile slurm --slurm-status-command squeue"
    )  # no accounting here
    try:
        wait(
            lambda: plan.cell(Job("vqa", 0), "VizWiz").is_file() or run.poll() is not None, "a row's first score", LIMIT
        )
        [job] = (each for each in processes() if is_row(each, "vqa"))
        os.kill(job, signal.SIGKILL)  # a job fails …
        wait(lambda: cluster.where("expert_merging_0") or run.poll() is not None, "the fit", LIMIT)
        node, number = cluster.where("expert_merging_0")
        cluster.lose(node, number)  # … and a node goes away
        wait(
            lambda: cluster.says("sinfo", "-h", "-n", node, "-o", "%t").startswith("down"), "the node is missed", LIMIT
        )
        cluster.start(node, "slurmd", "-D", "-N", node)  # and comes back
    finally:
        ended(folder, run)
    assert results(folder) == results(local)
    log = (plan.run / "log" / f"{plan.name}.log").read_text()
    assert log.count("rule row:") > len(plan.jobs) and "slurm" in log.lower(), log  # some were submitted again


def is_row(process: int, row: str) -> bool:
    """Whether a process is a row's job itself, and not the shell that starts it."""
    arguments = said(process, "cmdline")
    return arguments[0:1] != [] and arguments[0].endswith("python") and {"eval", "row", row} <= set(arguments)
