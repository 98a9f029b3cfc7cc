"""Table 1 from hand-made score files: numbers computed by hand, and what has no number."""

import csv
import math
import re

import pytest
from small_plan import score, small_plan

from emkit.errors import UserError
from emkit.files import write_json
from eval import render, scale, scores, table_files
from eval import table as tables
from eval.places import Job


@pytest.fixture
def plan(tmp_path):
    found = small_plan(tmp_path)
    for row in ("base", "task_arithmetic"):
        score(found, Job(row, 0), "VizWiz", 1, 0, 1, 0)  # 50, standard error 100 * sqrt(1/3) / 2
        score(found, Job(row, 0), "GQA", 1, 1, 1, 0)  # 75, standard error 25
    score(found, Job("expert_merging", 0), "VizWiz", 1, 1, 1, 0)  # 75
    score(found, Job("expert_merging", 1), "VizWiz", 1, 0, 1, 0)  # 50
    score(found, Job("expert_merging", 0), "GQA", 1, 1, 0, 0)  # 50
    score(found, Job("expert_merging", 1), "GQA", 1, 1, 1, 0)  # 75
    return found


def lines(plan):
    return {
        (line["method"], line["benchmark"]): line
        for line in csv.DictReader(render.as_csv(render.entries(plan)).splitlines())
    }


def test_columns_and_order(plan):
    text = render.as_csv(render.entries(plan)).splitlines()
    assert text[0] == "method,benchmark,score,stderr,n,seeds,status"
    assert [line.split(",")[:2] for line in text[1:4]] == [["Base", "VizWiz"], ["Base", "GQA"], ["Base", "Avg"]]
    assert len(text) == 1 + 4 * 3


def test_one_seed_is_the_cell_itself(plan):
    assert tuple(lines(plan)["Base", "VizWiz"].values())[2:] == (
        "50.00",
        f"{100 * math.sqrt(1 / 3) / 2:.2f}",
        "4",
        "1",
        "ok",
    )


def test_the_average_joins_independent_columns(plan):
    line = lines(plan)["Base", "Avg"]
    assert line["score"] == "62.50"
    assert line["stderr"] == f"{math.hypot(100 * math.sqrt(1 / 3) / 2, 25) / 2:.2f}"
    assert (line["n"], line["seeds"], line["status"]) == ("8", "1", "ok")


def test_seeds_are_averaged_and_their_spread_is_in_the_error(plan):
    line = lines(plan)["Expert Merging", "VizWiz"]
    within = (25**2 + (100 * math.sqrt(1 / 3) / 2) ** 2) / 2
    between = ((75 - 62.5) ** 2 + (50 - 62.5) ** 2) / 1 / 2
    assert (line["score"], line["seeds"]) == ("62.50", "2")
    assert line["stderr"] == f"{math.sqrt(within + between):.2f}"


def test_the_average_over_seeds_uses_each_seeds_own_average(plan):
    # both seeds average 62.5 over the columns, so nothing is added for their spread
    line = lines(plan)["Expert Merging", "Avg"]
    within = (25**2 + (100 * math.sqrt(1 / 3) / 2) ** 2) / 4
    assert (line["score"], line["stderr"]) == ("62.50", f"{math.sqrt(within):.2f}")


def test_a_row_without_method_is_not_run_yet_never_blank(plan):
    for benchmark in ("VizWiz", "GQA", "Avg"):
        assert list(lines(plan)["TIES Merging", benchmark].values())[2:] == ["", "", "", "", "not run yet"]


def test_a_failed_cell_is_shown_and_never_averaged_over(plan):
    job = Job("base", 0)
    about = {"row": "base", "seed": 0, "benchmark": "GQA"}
    scores.write_unscored(plan.cell(job, "GQA"), "failed", "scoring: the harness said no", **about)
    assert list(lines(plan)["Base", "GQA"].values())[2:] == ["", "", "", "", "failed"]
    assert list(lines(plan)["Base", "Avg"].values())[2:] == ["", "", "", "", "failed"]
    assert lines(plan)["Base", "VizWiz"]["status"] == "ok"


def test_a_column_with_one_failed_seed_has_no_score(plan):
    about = {"row": "expert_merging", "seed": 1, "benchmark": "GQA"}
    scores.write_unscored(plan.cell(Job("expert_merging", 1), "GQA"), "no judge", "no key", **about)
    assert lines(plan)["Expert Merging", "GQA"]["status"] == "no judge"
    assert lines(plan)["Expert Merging", "GQA"]["score"] == ""


def test_a_missing_score_file_is_not_run_yet_and_none_at_all_is_an_error(plan):
    plan.cell(Job("base", 0), "GQA").unlink()
    plan.cell(Job("expert_merging", 1), "GQA").unlink()
    for row in ("Base", "Expert Merging"):
        assert [lines(plan)[row, name]["status"] for name in ("VizWiz", "GQA", "Avg")] == ["ok"] + ["not run yet"] * 2
        assert lines(plan)[row, "Avg"]["score"] == ""
    for job in plan.jobs:
        for name in plan.benchmarks:
            plan.cell(job, name).unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"VizWiz\.json: Table 1 has not been run"):
        render.entries(plan)


def test_reading_back_gives_the_rounded_entries(plan, tmp_path):
    path = tmp_path / "table1.csv"
    path.write_text(render.as_csv(render.entries(plan)), encoding="utf-8")
    read = render.read_csv(path)
    assert read[0] == render.Entry("Base", "VizWiz", 50.0, 28.87, 4, 1, "ok")
    path.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(UserError, match="columns"):
        render.read_csv(path)


def test_markdown_names_the_profile_and_keeps_ours_apart_from_theirs(plan):
    text = render.as_markdown(render.entries(plan), plan.table, "smoke", table_files.sections(plan))
    ours, theirs = text.split("## Published")
    assert "profile `smoke`" in text.splitlines()[0]
    assert "| method | Avg | VizWiz | GQA |" in ours
    assert "| Base | 62.50 ± 19.09 | 50.00 ± 28.87 | 75.00 ± 25.00 |".replace(" ± ", "\u00a0±\u00a0") in ours
    assert "| TIES Merging | not run yet | – | – |" in ours
    assert "58.45" in theirs and "58.45" not in ours  # Expert Merging++'s published average


def test_published_tables_are_all_there():
    shapes = {number: tables.scores(f"eval/paper/table{number}.csv") for number in range(1, 14)}
    assert shapes[1]["Expert Merging++"]["Avg"] == 58.45
    assert shapes[1]["VQA Expert"]["RefCOCO"] is None
    assert len(shapes[1]) == 20 and all(shapes.values())


def test_writing_is_deterministic_and_current(plan):
    table_files.write(plan)
    first = plan.csv.read_bytes()
    assert table_files.is_current(plan)
    table_files.write(plan)
    assert plan.csv.read_bytes() == first
    score(plan, Job("base", 0), "GQA", 0, 0, 0, 1)
    assert not table_files.is_current(plan)


def test_the_table_says_where_every_scale_comes_from(tmp_path):
    rows = [
        {"id": "base", "label": "Base", "method": "checkpoint", "model": "base"},
        {"id": "ta", "label": "Task Arithmetic", "method": "task_arithmetic"},
        {"id": "ties", "label": "TIES Merging", "method": "ties", "scale": 0.7},
        {"id": "tsv", "label": "TSV Merging", "method": "tsv"},
        {"id": "wudi", "label": "WUDI Merging", "method": "wudi", "options": {"scale": 0.5}},
        {"id": "ada", "label": "AdaMerging", "method": "adamerging"},
        {"id": "em", "label": "Expert Merging", "method": "expert_merging"},
    ]
    found = small_plan(tmp_path, rows=rows)
    write_json(found.scale_file("ta"), {"scale": 0.2})
    assert scale.origins(found) == {
        "Task Arithmetic": (0.2, "chosen on its validation curve"),
        "TIES Merging": (0.7, "given by the recipe"),
        "TSV Merging": (1.0, "fixed by its authors"),
        "WUDI Merging": (0.5, "given by the recipe"),
        "AdaMerging": (0.3, "learned per tensor, starting from the recipe's value"),
        "Expert Merging": (0.2, "learned per tensor, starting from Task Arithmetic's"),
    }
    assert "| TSV Merging | 1 | fixed by its authors |" in render.scales(found)


def test_a_wide_table_breaks_its_cells_where_it_says_so_and_has_the_average_first(plan):
    columns = ["MathVista", "MATH-Vision", "OCRVQA", "RefCOCOg", "GQA", "VizWiz", "ChartQA", "Avg"]
    lines = [render.Entry("Base", name, 40.0 + i, 1.5, 10, 1, "ok") for i, name in enumerate(columns)]
    lines += [render.Entry("Task Arithmetic", name, status="failed") for name in columns]
    head, _, first, second = render.ours(lines).splitlines()
    assert head.startswith(
        "| method | Avg | Math<br>Vista | MATH-<br>Vision | OCRVQA | Ref<br>COCOg | GQA | Viz<br>Wiz |"
    )
    assert first.startswith("| Base | 47.00<br>±1.50 | 40.00<br>±1.50 |") and second.count("failed") == 8
    assert all(line.count("|") == 10 for line in (head, first, second))


def test_rows_stand_in_groups_and_none_is_lost(plan):
    table = tables.load("table1")
    text = render.theirs(table).splitlines()[2:]
    heads = [line.split("**")[1] for line in text if "**" in line]
    assert heads == [render.GROUPS[0], *render.GROUPS[2:5]]  # the paper has no merged tensors alone, nor what is beyond
    labels = [line.split(" | ")[0].removeprefix("| ") for line in text if "**" not in line]
    assert sorted(labels) == sorted(tables.published(table))
    assert labels[:2] == ["InternVL2.5-Instruct", "VQA Expert"] and labels[-1] == "Expert Merging++"
    assert render.groups(table)["AdaMerging"] == render.GROUPS[4] and render.groups(table)["Iso-C"] == render.GROUPS[3]
    assert render.groups(table)["Ridge"] == render.groups(table)["Expert Merging, β by rule"] == "Beyond the paper"


def test_the_markdown_holds_the_very_numbers_of_the_csv(plan):
    """The committed tables: every score and error of the CSV, and nothing else, is in the Markdown."""
    for number in (1, 2, 3):
        lines, table = render.read_csv(f"results/mini/tables/table{number}.csv"), tables.load(f"table{number}")
        shown = [line.split(" | ") for line in render.ours(lines, table).splitlines()[2:] if "**" not in line]
        found = {cells[0].removeprefix("| "): "".join(cells[1:]) for cells in shown}
        for label, row in render.grid(lines).items():
            numbers = re.findall(r"\d+\.\d\d", found[label])
            columns = sorted(row, key=lambda name: name != "Avg")
            assert numbers == [f"{x:.2f}" for name in columns for x in (row[name].score, row[name].stderr)]
