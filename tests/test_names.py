"""Names are neither paths nor a shell's words: what becomes a folder's name or an argument is checked, and the
Snakefile quotes whatever it hands to a shell."""

import re
import subprocess
import sys

import pytest
from small_plan import ROOT, TABLE, smoke, write

from emkit.errors import UserError
from eval import pipeline
from eval import profile as profiles
from eval import table as tables
from eval.__main__ import main
from eval.plan import Plan

BAD = [
    "x;touch SHELLPWN;echo ",
    "my profile",
    "../../../escape",
    "..",
    ".hidden",
    "-rf",
    "$(id)",
    "a/b",
    "a\nb",
    "",
    "é",
]
FINE = ["mini", "paper.mergelm", "RefCOCO+", "gamma_0.2", "2nd", "_x"]


@pytest.mark.parametrize("name", BAD)
def test_a_name_that_is_none_is_one_line(name, tmp_path, capsys):
    table, path = write(tmp_path, TABLE, smoke(name=name))
    with pytest.raises(UserError, match="name"):
        profiles.load(path)
    assert main(["plan", str(table), "--profile", str(path), "--results", str(tmp_path / "results")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    rows = [{**row, "id": name} if row["id"] == "base" else row for row in TABLE["rows"]]
    table, _ = write(tmp_path, TABLE | {"rows": rows}, smoke())
    with pytest.raises(UserError):
        tables.load(table)
    experts = smoke()["models"]["experts"]
    _, path = write(tmp_path, TABLE, smoke(models=smoke()["models"] | {"experts": {**experts, name: "some/folder"}}))
    with pytest.raises(UserError):
        profiles.load(path)
    assert not list(tmp_path.rglob("SHELLPWN")) and not (tmp_path / "results").exists()


@pytest.mark.parametrize("name", FINE)
def test_a_name_is_a_name(name, tmp_path):
    _, path = write(tmp_path, TABLE, smoke(name=name))
    assert profiles.load(path).name == name


def test_a_table_is_called_by_its_file_which_has_to_be_a_name(tmp_path):
    table, _ = write(tmp_path, TABLE, smoke())
    odd = tmp_path / "my table; touch x.yaml"
    table.rename(odd)
    with pytest.raises(UserError, match="the file's own name 'my table; touch x' is not a name"):
        tables.load(odd)


def test_the_snakefile_quotes_whatever_it_hands_to_a_shell():
    """Each field of a shell command is either put together by shlex.quote at the top, or formatted with :q."""
    text = (ROOT / "Snakefile").read_text(encoding="utf-8")
    commands = re.findall(r'^\s*shell: "(.*)"$', text, re.MULTILINE)
    assert len(commands) == text.count("shell:") >= 8
    for command in commands:
        for field in re.findall(r"{([^}]*)}", command):
            assert field in ("EVAL", "ARGUMENTS") or field.endswith(":q"), command
    for name in ("EVAL", "ARGUMENTS"):
        (line,) = re.findall(rf"^{name} = .*$", text, re.MULTILINE)
        assert "quote" in line


def test_odd_folders_reach_the_jobs_as_they_are(tmp_path):
    """Results, table and profile may lie anywhere; a job that is started gets the very paths."""
    home = tmp_path / "a b;touch SHELLPWN 'c' $(touch SHELLPWN) 1e3: [x]"
    home.mkdir()
    table, profile = write(home, TABLE, smoke())
    plan = Plan(table, profile, home / "results")
    config = pipeline.config(plan)
    command = [sys.executable, "-m", "snakemake", "--snakefile", "Snakefile", "--nolock", "--cores", "1"]
    given = ["--configfile", str(config), "--until", "data"]
    done = subprocess.run([*command, *given], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert plan.manifest("evaluation").is_file()
    assert not list(tmp_path.rglob("SHELLPWN")) and not (ROOT / "SHELLPWN").exists()


def test_braces_which_snakemake_reads_as_its_own_are_refused(tmp_path):
    table, profile = write(tmp_path, TABLE, smoke())
    with pytest.raises(UserError, match=r"results \{x\}: a folder with braces in its name cannot be used"):
        Plan(table, profile, tmp_path / "results {x}")
