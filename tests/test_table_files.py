"""A table is one file: found by its name, with a make target, and never two rows under one id."""

import shutil
import subprocess

import pytest
import yaml
from small_plan import ROOT, ROWS, TABLE, small_plan

from emkit.errors import UserError
from eval import summary, table
from eval.__main__ import main


def own(folder, name, **changes):
    """A table of InternVL with some rows of Table 1."""
    rows = [{"id": "base", "label": "Base", "method": "checkpoint", "model": "base"}]
    data = TABLE | {"backbone": "internvl", "rows": rows, "learned": []} | changes
    (folder / name).write_text(yaml.safe_dump(data), encoding="utf-8")
    return str(folder / name)


def expanded(tmp_path, *names, profile="smoke"):
    return summary.expanded(list(names), profile, str(tmp_path / "results"))


def test_a_table_is_listed_from_its_file_alone(tmp_path, capsys):
    path = own(tmp_path, "mine.yaml", title="Mine")
    assert main(["plan", path, "--profile", "smoke"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("Mine (") and "base/0" in text and "rows: 1 jobs, 2 cells" in text


def test_a_file_in_the_folder_has_make_targets(tmp_path):
    shutil.copyfile(ROOT / "Makefile", tmp_path / "Makefile")
    (tmp_path / "eval" / "tables").mkdir(parents=True)
    for name in ("table1", "table14"):
        (tmp_path / "eval" / "tables" / f"{name}.yaml").touch()
    (tmp_path / ".venv").mkdir()
    for target, words in {
        "reproduce-table14": "-m eval reproduce table14 --profile smoke",
        "plan-table14": "-m eval plan table14 --profile smoke",
        "reproduce-tables": "-m eval reproduce table1 table2 table3 --profile smoke",
    }.items():
        command = ["make", "--dry-run", "--assume-old=.venv/ready", target, "PROFILE=smoke"]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
        assert words in run.stdout


# ---- rows that tables share
TIES = {"id": "ties", "label": "TIES", "method": "ties", "scale": 0.3}


def test_the_same_row_under_the_same_id_is_shared(tmp_path):
    one = own(tmp_path, "one.yaml", rows=[TIES | {"id": "mine"}])
    two = own(tmp_path, "two.yaml", rows=[TIES | {"id": "mine", "label": "another label"}])
    plans, summaries = expanded(tmp_path, one, two, one)
    assert [plan.name for plan in plans] == ["one", "two"] and summaries == []
    assert plans[0].cell(plans[0].jobs[0], "GQA") == plans[1].cell(plans[1].jobs[0], "GQA")


def test_another_row_under_the_same_id_is_refused(tmp_path):
    one = own(tmp_path, "one.yaml", rows=[TIES | {"id": "mine"}])
    two = own(tmp_path, "two.yaml", rows=[TIES | {"id": "mine", "options": {"density": 0.5}}])
    with pytest.raises(UserError, match=r"one.yaml: row 'mine' is another row in .*two.yaml \(options\)"):
        expanded(tmp_path, one, two)
    with pytest.raises(UserError, match=r"row 'ties' is another row in .*table1.yaml \(scale, columns\)"):
        expanded(tmp_path, own(tmp_path, "three.yaml", rows=[TIES]))


def test_a_scale_chosen_on_other_columns_is_another_rows(tmp_path):
    """Learned rows start from Task Arithmetic's scale, which is chosen on a table's columns."""
    swept = {"id": "swept", "label": "{}", "method": "expert_merging", "vary": {"options.gamma": [0, 1]}}
    with pytest.raises(UserError, match=r"row 'task_arithmetic' is another row in .*table1.yaml \(columns\)"):
        expanded(tmp_path, own(tmp_path, "few.yaml", rows=[swept]))
    whole = table.load("table1").columns
    plans, _ = expanded(tmp_path, own(tmp_path, "all.yaml", rows=[swept], columns=whole))
    assert [job.row for job in plans[0].jobs] == ["swept_0", "swept_0", "swept_1", "swept_1"]


def test_a_profile_of_another_name_has_results_of_its_own(tmp_path):
    plan = small_plan(tmp_path, rows=[*ROWS, TIES | {"id": "tsv"}], name="mine")
    assert expanded(tmp_path, str(plan.path), profile=str(plan.profile_path))[0][0].home.name == "mine"


# ---- tables of averages
def averages(folder, **changes):
    one, two = (own(folder, name) for name in ("one.yaml", "two.yaml"))
    data = {"title": "Both", "averages": {"A": one, "B": two}, "rows": [{"id": "base", "label": "Base"}]} | changes
    (folder / "both.yaml").write_text(yaml.safe_dump(data), encoding="utf-8")
    return str(folder / "both.yaml")


def test_a_table_of_averages_runs_its_tables_each_once(tmp_path):
    plans, [both] = expanded(tmp_path, averages(tmp_path), str(tmp_path / "one.yaml"))
    assert [plan.name for plan in plans] == ["one", "two"] and both.table.title == "Both"
    assert {entry.status for entry in both.entries()} == {"not run yet"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rows": [{"id": "bas", "label": "B"}]}, "no table here has the row 'bas': did you mean 'base'"),
        ({"columns": ["GQA"]}, "a table has either 'columns' or 'averages'"),
        ({"averages": {}}, "a table has either 'columns' or 'averages'"),
        ({"averages": {"A": "tabel1"}}, "there is no table 'tabel1': did you mean 'table1'"),
    ],
)
def test_a_wrong_table_of_averages_is_one_line(tmp_path, changes, said):
    with pytest.raises(UserError, match=said) as error:
        expanded(tmp_path, averages(tmp_path, **changes))
    assert "\n" not in str(error.value)


def test_a_table_of_averages_has_no_rows_to_run(tmp_path, capsys):
    assert main(["row", averages(tmp_path), "base", "0", "--profile", "smoke"]) == 2
    assert "is of other tables' averages" in capsys.readouterr().err
