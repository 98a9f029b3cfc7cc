"""The lessons on the published tables, against published examples, brute force, scipy, and the facts of the tables."""

from __future__ import annotations

import itertools
import math
from decimal import ROUND_DOWN, ROUND_HALF_DOWN, ROUND_HALF_UP, Decimal
from fractions import Fraction

import lesson_notebook
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from eval.lessons import granularity, precision, published, published_words

NOTEBOOK = "00-reading-the-tables"


@pytest.fixture(scope="module")
def paper():
    return published.read()


@pytest.fixture(scope="module")
def metrics():
    return published.metrics()


# granularity


@pytest.mark.parametrize(
    ("mean", "n", "possible"),
    [
        (5.19, 28, False),  # Brown and Heathers' own example: 145/28 is 5.18, 146/28 is 5.21
        (5.18, 28, True),
        (5.21, 28, True),
        (5.93, 49, False),  # The Economist's, 18 June 2016
        (3.48, 20, False),  # twenty throws of a die
        (3.45, 20, True),
        (5.27, 43, False),  # of the R package scrutiny
    ],
)
def test_published_examples_of_grim(mean, n, possible):
    assert ("rounded" in granularity.counts(mean, n, unit=1)) is possible  # GRIM as published: rounding alone


@pytest.mark.parametrize("n", [7, 76, 164, 800])
def test_grim_is_what_printing_every_share_gives(n):
    exact = [Decimal(100) * k / n for k in range(n + 1)]
    for rule, ways in {"rounded": (ROUND_HALF_UP, ROUND_HALF_DOWN), "truncated": (ROUND_DOWN,)}.items():
        printed = {share.quantize(Decimal("0.01"), way) for share in exact for way in ways}
        found = {Decimal(v) / 100 for v in range(10_001) if rule in granularity.counts(v / 100, n)}
        assert found == printed


def test_by_chance_is_the_share_of_printable_values():
    printed = {round(Decimal(100) * k / 76, 2) for k in range(77)}
    cut = {(Decimal(100) * k / 76).quantize(Decimal("0.01"), ROUND_DOWN) for k in range(77)}
    assert granularity.by_chance(76) == pytest.approx(len(printed | cut) / 10_001)
    assert granularity.by_chance(20_000) == 1


def test_a_mean_of_five_runs_fits_one_run_a_fifth_of_the_time():
    drawn = np.random.default_rng(0).integers(0, 165, (4000, 5)).sum(axis=1)
    fitting = [granularity.fits(round(100 * right / (5 * 164), 2), 164) for right in drawn]
    assert np.mean(fitting) == pytest.approx(0.2, abs=0.02)
    assert granularity.by_repeats(164, 5) == pytest.approx(0.2, abs=0.005)
    assert granularity.by_repeats(164, 1) == 1


def test_sizes_finds_the_n_that_made_the_values():
    shares = [round(100 * k / 83, 2) for k in (1, 17, 40, 62, 79)]
    assert granularity.sizes(shares, 90) == [83]


def test_tenths_are_what_the_vqa_score_gives():
    """An item's VQA score by its definition: the mean over ten annotators left out of min(1, agreeing others / 3)."""
    for agreeing in range(11):
        votes = [1] * agreeing + [0] * (10 - agreeing)
        left_out = [min(Fraction(1), Fraction(sum(votes) - vote, 3)) for vote in votes]
        assert (sum(left_out) / 10 * 10).denominator == 1


def test_impossible_cells_are_two(paper, metrics):
    tested = granularity.tested(published.cells(paper), metrics)
    found = granularity.impossible(tested)[["table", "row", "column", "percent"]]
    assert found.to_numpy().tolist() == [
        [2, "Task Arithmetic", "ChartQA", 79.67],
        [3, "TIES Merging", "GSM8K", 53.66],
    ]
    named = granularity.power(tested).set_index(["backbone", "column"])["values are"]
    assert named["internvl", "RefCOCOg"] == "of n items" and named["qwen2_vl", "RefCOCOg"] == "another n"
    assert named["internvl", "GQA"] == "blind"


def test_own_methods_fit_single_runs(paper, metrics):
    found = granularity.repeated(granularity.tested(published.cells(paper), metrics))
    assert {"HumanEval", "MBPP", "MATH", "MATH-Vision"} <= set(found.index)
    assert (found["fit one run"] == found["different values"]).all()
    assert found["probability that all fit"].max() < 0.001


# averages and configurations


def test_averages_one_does_not_add_up(paper):
    found = published.averages(paper)
    wrong = found[found["rule"] == "does not add up"]
    assert wrong[["table", "row"]].to_numpy().tolist() == [[3, "TA w/ DARE"]]
    assert wrong["mean"].iloc[0] == pytest.approx(46.308)
    em = found[(found["table"] == 1) & (found["row"] == "Expert Merging")].iloc[0]
    assert (em["mean"], em["printed"], em["rule"]) == (pytest.approx(58.119), 58.11, "truncated")


@pytest.mark.parametrize(
    ("cells", "printed", "rule"),
    [
        ([1.00, 1.01], 1.01, "rounded"),  # 1.005: a half, rounded up
        ([1.00, 1.01], 1.00, "rounded or truncated"),
        ([1.00, 1.01, 1.01], 1.00, "truncated"),
        ([1.00, 1.00, 1.01], 1.01, "possible"),
        ([1.00, 1.00], 1.01, "does not add up"),
        ([0.29, 0.29], 0.29, "rounded or truncated"),  # 100 × 0.29 is 28.999… in binary
    ],
)
def test_rules_of_an_average(cells, printed, rule):
    frame = pd.DataFrame([[*cells, printed]], columns=[*map(str, range(len(cells))), "Avg"], index=["row"])
    assert published.averages({1: frame})["rule"].tolist() == [rule]


def test_same_configuration_differs_where_the_paper_differs(paper):
    found = published.disagreements(paper)
    odd = found[found["columns that differ"].map(bool)]
    assert set(zip(odd["backbone"], odd["table"], odd["Avg"])) == {
        ("internvl", 8, 56.61),
        ("internvl", 8, 43.49),
        ("qwen2_vl", 9, 63.06),
        ("mistral", 10, 40.85),
    }
    assert [published.defaults(name) for name in published.NUMBERS] == [(5.0, 5), (0.8, 10), (0.8, 5)]


def test_experts_that_do_not_lead(paper):
    found = published.leaders(paper).set_index("column")
    assert "Grounding Expert" in set(found.loc[["OCRVQA"], "best"])
    assert found.loc["MBPP", "best"] == "Mistral-7B-v0.1"


# precision


def test_stderr_is_the_spread_of_drawn_shares():
    drawn = np.random.default_rng(1).binomial(76, 0.42, 200_000) / 76 * 100
    assert precision.stderr(42, 76) == pytest.approx(drawn.std(), rel=0.01)


def test_two_proportions_is_the_chi_square_test():
    table = [[88, 76], [76, 88]]
    expected = stats.chi2_contingency(table, correction=False).pvalue
    assert precision.two_proportions(100 * 88 / 164, 100 * 76 / 164, 164) == pytest.approx(expected)
    assert precision.two_proportions(0, 0, 10) == 1


def test_average_stderr_is_that_of_drawn_averages(paper, metrics):
    row = paper[3].loc["Expert Merging"]
    names = row.index.drop("Avg")
    items = [int(metrics.loc[name, "items"]) for name in names]
    random_state = np.random.default_rng(2)
    drawn = sum(100 * random_state.binomial(n, row[name] / 100, 100_000) / n for n, name in zip(items, names)) / len(
        items
    )
    assert precision.average_stderr(row, metrics) == pytest.approx(drawn.std(), rel=0.01)


def test_best_case_and_most_discordant_are_mcnemars():
    assert precision.best_case(6) == pytest.approx(stats.binomtest(6, 6).pvalue)
    for gained, n in itertools.product((5, 6, 12), (60, 164)):
        passing = [
            changed
            for changed in range(gained, n + 1, 2)
            if stats.binomtest((changed + gained) // 2, changed).pvalue <= 0.05
        ]
        assert precision.most_discordant(gained, n) == (max(passing) / n if passing else None)


def test_needed_disagreement_is_at_the_level(metrics):
    first, second = (
        pd.Series({"HumanEval": a, "MBPP": b, "Avg": (a + b) / 2}) for a, b in ((60.0, 50.0), (48.0, 46.0))
    )
    found = precision.of_averages(first, second, metrics)
    delta = found["passes if at most … % differ"] / 100
    variance = ((delta - 0.12**2) / 164 + (delta - 0.04**2) / 500) / 4
    assert found["gain"] == pytest.approx(8)
    assert 2 * stats.norm.sf(0.08 / math.sqrt(variance)) == pytest.approx(0.05)


def test_gains_that_survive(paper, metrics):
    found = precision.gains(paper, metrics).set_index(["backbone", "comparison"])["verdict"]
    ours = "Expert Merging++ − Expert Merging"
    assert found["internvl", ours] == found["qwen2_vl", ours] == "cannot be shown"
    assert found["internvl", "Expert Merging − w/o coefficient regularization"] == "ahead even unpaired"
    assert ("mistral", "Expert Merging++ − TA w/ DARE") in found.index  # by its recomputed average
    assert ("mistral", "Expert Merging++ − WUDI v2") in found.index  # by its printed one


def test_what_the_last_step_is_made_of(paper, metrics):
    found = precision.one_item(paper, metrics).set_index("backbone")
    assert found.loc["qwen2_vl", ["most from", "in items"]].tolist() == ["MATH-Vision", 2]
    assert found.loc["qwen2_vl", "its part"] == pytest.approx(2.63 / 10)
    assert found.loc["mistral", ["most from", "in items"]].tolist() == ["HumanEval", 12]
    assert found.loc["mistral", "gain without it"] < 0


def test_noise_estimates():
    draws = np.random.default_rng(3).normal(size=(100_000, 13))
    assert precision.expected_best(13) == pytest.approx(draws.max(axis=1).mean(), abs=0.01)
    assert precision.neighbours(pd.Series(draws[:, 0])) == pytest.approx(1, abs=0.02)
    value, low, high = precision.deviation_from_pair(2)
    assert stats.chi2.cdf((value / low) ** 2, 1) - stats.chi2.cdf((value / high) ** 2, 1) == pytest.approx(0.95)
    assert value == pytest.approx(np.std([0, 2], ddof=1))


def test_words_have_the_numbers(paper, metrics):
    said = published_words.conclusions(paper, metrics)
    assert "142 of 143 averages" in said and "4 of 9 configurations" in said and "6 of 6 sweeps" in said
    assert "+2.40" in published_words.rivals(paper) and "+3.23" in published_words.rivals(paper)


# the notebook's exercises


def test_solutions(paper, metrics, capsys):
    names = {"paper": paper, "metrics": metrics} | {
        m.__name__.rpartition(".")[2]: m for m in (granularity, precision, published)
    }
    solutions = lesson_notebook.solutions(NOTEBOOK)
    assert len(solutions) == 3
    said = []
    for code in solutions:
        exec(code, dict(names))
        said.append(capsys.readouterr().out.strip())
    lead = paper[2].drop(columns=["Avg", "MATH-Vision"]).mean(axis=1)
    assert said[0] == f"Mixture Training {lead['Expert Merging++'] - lead['Expert Merging']:.2f}"
    fitting, _, values, *_, chance = said[1].split()
    assert int(fitting) < float(chance) < int(values)
    assert said[2].startswith("6 ")


def test_the_notebook_has_short_cells():
    lesson_notebook.check(NOTEBOOK)
