"""The table notebook: its conclusion against the scores, what is asked for, a run under way, and how it is written."""

import dataclasses
import itertools
import re
import statistics
from pathlib import Path

import nbformat
import numpy as np
import pytest
from scipy import stats as distributions
from small_plan import ROWS, score, small_plan

from emkit.errors import UserError
from eval import comparisons, conclusion, notebooks, papermill_runner, render, scores
from eval import table as tables
from eval.places import Job
from eval.plan import Plan
from eval.view import View

ROOT = Path(__file__).resolve().parent.parent
EM, TA = "expert_merging", "task_arithmetic"
MANY = [*ROWS, {"id": "vqa", "label": "VQA Expert", "method": "checkpoint", "model": "VQA"}]
MANY += [{"id": "mixture", "label": "Mixture Training", "method": "checkpoint", "model": "mixture"}]


def partial(folder, **changes):
    """A plan in the middle of its run: the base, Task Arithmetic and one seed of Expert Merging stand."""
    plan = small_plan(folder, rows=MANY, compare=[[EM, TA], ["base", TA]], **changes)
    for name in plan.benchmarks:
        score(plan, Job("base", 0), name, *[0] * 8, *[1] * 4)
        score(plan, Job(TA, 0), name, *[0] * 2, *[1] * 10)
    score(plan, Job(EM, 0), "GQA", *[0] * 4, *[1] * 8)
    return plan


def view(plan, **asked):
    return View(str(plan.path), str(plan.profile_path), str(plan.home.parent), **asked)


# ---- a run under way
def test_a_run_under_way_is_shown_everywhere_and_says_what_is_missing(tmp_path):
    shown = view(partial(tmp_path))
    ours = shown.ours()
    assert "| Expert Merging | not run yet | – | – |" in ours and "| VQA Expert | not run yet |" in ours
    assert "| Task Arithmetic | 83.33" in ours
    verdicts = shown.verdicts()
    assert "| Expert Merging − Task Arithmetic | – | – | – | 1.94 | not run yet |" in verdicts
    assert "| Base − Task Arithmetic | -50.00 |" in verdicts and "| behind |" in verdicts
    assert "not run yet" in shown.seeds()
    texts = [text.get_text() for axis in shown.heatmap().figure.axes for text in axis.texts]
    assert texts.count("not run yet") == 4  # Expert Merging, TIES, the expert, the mixture
    said = shown.conclusion()
    assert "2 of 6 rows are complete; not run yet: TIES Merging, Expert Merging, VQA Expert, Mixture Training" in said
    assert "**Not compared**:\n    - Expert Merging and Task Arithmetic (not run yet)" in said
    for picture in (shown.differences(), shown.scale_curves(), shown.learned()):
        assert picture.alt


def test_the_notebook_runs_while_a_run_is_under_way(tmp_path):
    plan = partial(tmp_path)
    notebooks.execute(plan)
    text = plan.notebook.read_text(encoding="utf-8")
    assert "not run yet" in text and text.count('"image/png": "') == 4


def test_where_nothing_stands_the_one_line_names_the_command_and_the_notebook_that_was_run(tmp_path):
    plan = small_plan(tmp_path)
    with pytest.raises(UserError) as caught:
        view(plan)
    assert f"run `{plan.command}`" in str(caught.value) and "until then" not in str(caught.value)
    executed = plan.home / "notebooks" / "table1.ipynb"
    executed.parent.mkdir(parents=True)
    executed.write_text("{}", encoding="utf-8")
    with pytest.raises(UserError) as caught:
        view(plan)
    assert str(executed) in str(caught.value) and "\n" not in str(caught.value)


def test_a_failed_cell_is_named_and_not_averaged_over(tmp_path):
    plan = partial(tmp_path)
    about = {"row": TA, "seed": 0, "benchmark": "GQA"}
    scores.write_unscored(plan.cell(Job(TA, 0), "GQA"), "failed", "the harness said no", **about)
    shown = view(plan)
    assert "failed: Task Arithmetic" in shown.conclusion() and "(failed)" in shown.conclusion()
    assert "| Task Arithmetic | failed |" in shown.ours()


def test_nobody_leads_a_column_whose_experts_are_not_all_scored(tmp_path):
    plan = partial(tmp_path)
    assert {each["leading expert"] for each in comparisons.reach(plan, render.entries(plan))} == {"not run yet"}


# ---- what is asked for
def test_rows_columns_and_pairs_are_chosen_by_name(tmp_path):
    shown = view(partial(tmp_path), rows="Task Arithmetic, base", columns="GQA", pairs=" task_arithmetic : base ")
    lines = shown.ours().splitlines()
    assert lines[0] == "| method | Avg | GQA |"
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ") and "**" not in line][1:] == [
        "| Base",
        "| Task Arithmetic",
    ]
    assert "| Task Arithmetic − Base | 50.00 |" in shown.verdicts() and "Expert Merging" not in shown.verdicts()
    assert {each["benchmark"] for each in shown.compared} == {"GQA", "Avg"}
    assert "VizWiz" not in shown.published() and "TSV" not in shown.published()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"rows": "task_arithmetics"}, "Table 1 has no row 'task_arithmetics': did you mean 'task_arithmetic'?"),
        ({"columns": "GQA, VizWizz"}, "Table 1 has no column 'VizWizz': did you mean 'VizWiz'?"),
        ({"pairs": "base:tta"}, "Table 1 has no row 'tta'"),
        ({"pairs": "base-ties"}, "'base-ties' is not a pair of rows: write first:second"),
    ],
)
def test_a_wrong_name_is_one_clear_line(tmp_path, asked, said):
    with pytest.raises(UserError, match=re.escape(said)):
        view(partial(tmp_path), **asked)


# ---- the conclusion
def committed(number):
    plan = Plan(f"table{number}", "mini")
    return plan, render.read_csv(f"results/mini/tables/table{number}.csv")


def line(said, start):
    [found] = [line for line in said.splitlines() if line.startswith(f"- **{start}")]
    return found


def below(said, start):
    """The list under a paragraph."""
    lines = said.splitlines()
    rest = lines[lines.index(line(said, start)) + 1 :]
    return [each.removeprefix("    - ") for each in itertools.takewhile(lambda each: each.startswith("    "), rest)]


@pytest.mark.parametrize("number", [1, 2, 3])
def test_who_leads_and_how_far_from_the_papers_order_against_an_independent_count(number):
    plan, lines = committed(number)
    said = conclusion.text(plan, lines, [], [])
    averages = {entry.method: entry.score for entry in lines if entry.benchmark == "Avg"}
    other = ("Expert", "Ridge", "InternVL2.5-Instruct", "Qwen2-VL-Base", "Mistral-7B-v0.1", "Mixture Training")
    merges = {k: v for k, v in averages.items() if not k.startswith(other) and not k.endswith((" Expert", "only)"))}
    merges |= {name: averages[name] for name in ("Expert Merging", "Expert Merging++")}
    best = max(merges, key=merges.__getitem__)
    assert f"Of {len(merges)} merges, {best} ({merges[best]:.1f} ± " in line(said, "Who leads")
    base = next(iter(averages.values()))
    assert f"the base has {base:.1f}" in said
    paper = {label: row["Avg"] for label, row in tables.published(plan.table).items()}
    both = [name for name in merges if name in paper]
    rho = distributions.spearmanr([merges[name] for name in both], [paper[name] for name in both]).statistic
    assert f"rank correlation {rho:+.2f}".replace("-", "−") in line(said, f"The order of the {len(both)} merges")
    if number != 3:
        here = sum(merges[name] >= averages["Mixture Training"] for name in both)
        there = sum(paper[name] >= paper["Mixture Training"] for name in both)
        assert f"reached by {here} of {len(both)} merges here and by {there} of them" in line(said, "Mixture Training")


def test_rows_beyond_the_paper_stand_and_are_compared_by_themselves(tmp_path):
    """The best of all is no leader of the paper's merges, and its pairs do not enter the others' p values."""
    new = [{"id": "ridge", "label": "Ridge", "method": "ridge", "beyond": True}]
    plan = small_plan(tmp_path, rows=MANY + new, compare=[[TA, "base"]], compare_beyond=[["ridge", TA]])
    for name in plan.benchmarks:
        score(plan, Job("base", 0), name, *[0] * 8, *[1] * 4)
        score(plan, Job(TA, 0), name, *[0] * 6, *[1] * 6)
        score(plan, Job("ridge", 0), name, *[0] * 1, *[1] * 11)
    shown = view(plan)
    said = shown.conclusion()
    assert "Of 1 merges, Task Arithmetic (50.0" in line(said, "Who leads")
    assert line(said, "Beyond the paper").startswith("- **Beyond the paper.** Ridge (91.7 ± ")
    assert "the best of the paper's merges is Task Arithmetic (50.0" in line(said, "Beyond the paper")
    [each] = below(said, "Beyond the paper")
    assert each.startswith("ahead: Ridge is ahead of Task Arithmetic by 41.7 points (95 % interval")
    assert "Ridge" not in line(said, "Who leads") and "Ridge" not in shown.verdicts()
    ours = shown.ours()
    assert ours.index("**Merges with learned") < ours.index("**Beyond the paper**") < ours.index("| Ridge |")
    titles = [axis.get_title(loc="left") for axis in shown.heatmap().figure.axes]
    assert titles[:2] == ["Merges", "Merges beyond the paper"]
    assert "Heat map of 3 merges and" in shown.heatmap().alt  # those of the paper


def test_a_profile_of_other_models_says_so_in_place_of_the_table(tmp_path):
    plan = partial(tmp_path, prose={"models": "Ours.", "limits": "Few."})
    profile = plan.profile_path
    assert view(plan).say("models") == "Ours."
    profile.write_text(profile.read_text() + "prose: {models: Theirs.}\n", encoding="utf-8")
    shown = view(plan)
    assert shown.say("models") == "Theirs." and shown.say("limits") == "Few." and shown.say("none") == ""
    assert "Theirs." in shown.heading()


@pytest.mark.parametrize("turned", [False, True])
def test_the_order_of_the_merges_is_compared_with_that_on_another_profiles_models(turned):
    """`small` names `mini` beside it: against itself, and against itself upside down."""
    plan, (_, lines) = Plan("table3", "small"), committed(3)
    mine = [dataclasses.replace(e, score=100 - e.score) if turned and e.score is not None else e for e in lines]
    said = line(conclusion.text(plan, mine, [], []), "The order of the 12 merges**, against that of the profile `mini`")
    rho, low, high = (float(x.replace("−", "-")) for x in re.findall(r"[+−]\d\.\d\d", said))
    assert rho == (-1 if turned else 1)
    merged = [e for e in lines if e.benchmark == "Avg" and e.method in conclusion.merges(plan)]
    rng, drawn = np.random.default_rng(5), []
    for _ in range(1500):
        once, again = (rng.normal([e.score for e in merged], [e.stderr for e in merged]) for _ in range(2))
        drawn.append(distributions.spearmanr(-once if turned else once, again).statistic)
    assert (low, high) == pytest.approx(np.percentile(drawn, (2.5, 97.5)), abs=0.04) and high - low > 0.02


def test_a_profile_beside_that_was_not_run_says_so(tmp_path):
    plan = Plan("table3", "small", tmp_path)
    said = conclusion.text(plan, committed(3)[1], [], [])
    assert "cannot be compared with the profile `mini`: not run yet" in said


def comparison(plan, pair, deltas, holm):
    named = comparisons.named(plan, pair)
    numbers = [*deltas, float(np.mean(deltas))]
    return [
        {"rows": named, "benchmark": name, "delta": x, "low": x - 1, "high": x + 1, "p": holm, "holm": holm}
        for name, x in zip([*plan.benchmarks, "Avg"], numbers, strict=True)
    ]


def test_what_is_shown_stands_beside_the_papers_difference_and_where_it_comes_from():
    plan, lines = committed(1)
    pairs = [(EM, TA), (EM, "wudi_v2"), ("expert_merging_pp", EM), ("tsv", "weight_average")]
    found = comparison(plan, pairs[0], [0, 0, 1, 1, -2, 0, 0, 6, 6, 8], 0.001)
    found += comparison(plan, pairs[1], [-3.0] * 10, 0.01) + comparison(plan, pairs[2], [0.1] * 10, 0.7)
    found.append({"rows": comparisons.named(plan, pairs[3]), "benchmark": "Avg", "status": "failed"})
    said = conclusion.text(plan, lines, found, pairs)
    assert below(said, "Shown to differ") == [
        "Expert Merging is ahead of Task Arithmetic by 2.0 points (95 % interval +1.0 to +3.0; the paper: +1.9, the "
        "same way round)",
        "Expert Merging is behind WUDI v2 by 3.0 points (95 % interval −4.0 to −2.0; the paper: +1.1, **the other way "
        "round**)",
    ]
    assert below(said, "Not shown to differ") == [
        "Expert Merging++ and Expert Merging (+0.1, 95 % interval −0.9 to +1.1; the paper: +0.3)"
    ]
    assert below(said, "Not compared") == ["TSV Merging and Weight Average (failed)"]
    theirs = tables.published(plan.table)
    steps = [theirs["Expert Merging"][name] - theirs["Task Arithmetic"][name] for name in plan.benchmarks]
    grounding = f"{sum(steps[-3:]) / 10:+.1f}"
    assert line(said, "Where it comes from").startswith(
        "- **Where it comes from.** Expert Merging − Task Arithmetic, +2.0 points here: VQA +0.0, Geometry +0.2, Chart "
        "−0.2, OCR +0.0, Grounding +2.0. In the paper, +1.9: "
    )
    assert f"Grounding {grounding}." in line(said, "Where it comes from")


@pytest.mark.parametrize(
    ("p", "shown"), [(0.0, "<\u00a00.001"), (0.00099, "<\u00a00.001"), (0.001, "0.001"), (0.25, "0.250")]
)
def test_no_p_value_is_written_as_nothing(p, shown):
    assert comparisons.p_value(p) == shown
    assert f"| {shown} |" in comparisons.as_markdown([{"rows": "a − b", "holm": p}])


def test_the_interval_over_one_seed_is_a_dash():
    assert "| a | 1.00 | – |" in comparisons.as_markdown([{"row": "a", "mean": 1.0, "low": float("nan")}])


# ---- how it is written
def test_the_notebook_has_short_cells_a_typed_choice_and_the_conclusion_first():
    found = nbformat.read(ROOT / "notebooks" / "table.ipynb", as_version=4)
    code = [cell.source for cell in found.cells if cell.cell_type == "code"]
    lengths = [len(source.splitlines()) for source in code]
    assert statistics.median(lengths) <= 6 and max(lengths) <= 8
    assert not any(word in source for source in code for word in ("def ", "class ", " for "))
    known = papermill_runner.parameters(ROOT / "notebooks" / "table.ipynb")
    assert {known[name] for name in ("rows", "columns", "pairs")} == {("str", "")}
    order = [next(i for i, source in enumerate(code) if name in source) for name in ("conclusion", "ours", "heatmap")]
    assert order == sorted(order)
    assert len({cell["id"] for cell in found.cells}) == len(found.cells)
