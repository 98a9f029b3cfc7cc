"""The site's generated pages: every number of a table leads to the scores that it is the mean of, and only those."""

import json
import re

import pytest
from small_plan import score, small_plan

from eval.book import build, pages
from eval.places import Job

CSV = """method,benchmark,score,stderr,n,seeds,status
Base,VizWiz,50.00,20.41,2,1,ok
Base,GQA,,,,,not run yet
TIES Merging,VizWiz,,,,,not run yet
"""


@pytest.fixture
def plan(tmp_path):
    plan = small_plan(tmp_path)
    folder = plan.home / "tables"
    folder.mkdir(parents=True)
    (folder / "table1.csv").write_text(CSV, encoding="utf-8")
    (folder / "table1.png").write_bytes(b"")
    return plan


def test_without_score_files_a_table_has_no_links_and_says_what_makes_them(plan):
    text = pages.table(plan, plan.home / "tables" / "table1.csv")
    assert "| Base | 50.00 ± 20.41 | not run yet |" in text and plan.command in text and "](table1-scores" not in text
    assert pages.rows(plan) is None


def test_a_number_leads_to_its_rows_scores_and_the_command_behind_them(plan):
    score(plan, Job("base", 0), "VizWiz", 1.0, 0.0)
    text, behind = pages.table(plan, plan.home / "tables" / "table1.csv"), pages.rows(plan)
    [target] = re.findall(r"\[50\.00 ± 20\.41\]\(table1-scores\.md#([\w-]+)\)", text)
    assert f"({target})=\n## Base" in behind and f"eval row {plan.asked[0]} base 0" in behind and plan.command in behind
    [link] = re.findall(r'<a href="([^"]+)">', behind)
    assert (plan.home / link.removeprefix("scores/")).is_file() and link.endswith("base/0/VizWiz.json")
    assert "TIES" not in behind


def test_every_page_in_the_contents_is_there(plan, tmp_path):
    executed = plan.home / "notebooks" / "one.ipynb"
    executed.parent.mkdir()
    image = {"image/png": {"alt": "a line", "width": 870}}
    cell = {"cell_type": "code", "metadata": {}, "outputs": [{"metadata": image}]}
    executed.write_text(json.dumps({"cells": [cell]}), encoding="utf-8")
    score(plan, Job("base", 0), "VizWiz", 1.0, 0.0)
    build.lay_out([plan], plan.home, tmp_path / "source")
    named = re.findall(r"(?:root|file): (\S+)", (tmp_path / "source" / "_toc.yml").read_text(encoding="utf-8"))
    assert {"intro", "api", "methods/ties", "table1", "table1-scores", "notebooks/one"} <= set(named)
    found = tmp_path / "source"
    assert all((found / f"{name}.md").is_file() or (found / f"{name}.ipynb").is_file() for name in named)
    [cell] = json.loads((found / "notebooks" / "one.ipynb").read_text(encoding="utf-8"))["cells"]
    assert cell["metadata"]["mystnb"] == {"image": {"alt": "a line", "width": "870px"}}


def test_a_row_that_is_another_one_leads_to_the_same_scores(tmp_path):
    em = {"id": "expert_merging", "label": "Expert Merging", "method": "expert_merging"}
    plan = small_plan(
        tmp_path, rows=[em, em | {"id": "no_chunking", "label": "no chunking", "plain": "expert_merging"}]
    )
    for job in plan.jobs:
        score(plan, job, "GQA", 1, 0)
    behind = pages.rows(plan)
    assert "## Expert Merging" in behind and "## no chunking" in behind
    assert behind.count("internvl/expert_merging/0/GQA.json") == 2
