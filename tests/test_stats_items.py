"""Statistics against scipy, hand-worked cases and a plain jackknife."""

import math

import numpy as np
import pytest
from scipy import stats as reference

from emkit.errors import UserError
from eval import stats


def items(scores, groups=None):
    groups = groups or [[] for _ in scores]
    return [
        {"index": str(i), "prediction": "", "score": float(s), "groups": g}
        for i, (s, g) in enumerate(zip(scores, groups))
    ]


def grouped(seed: int, n: int = 60):
    """Items in three overlapping groups; some in none."""
    rng = np.random.default_rng(seed)
    member = rng.random((n, 3)) < [0.5, 0.3, 0.6]
    groups = [[name for name, inside in zip("abc", row) if inside] for row in member]
    return (rng.random(n) < 0.4).astype(float), groups


def test_mean_stderr_is_scipy_sem():
    values = [0.0, 1.0, 1.0, 0.6, 0.3]
    mean, stderr = stats.mean_stderr(values)
    assert mean == pytest.approx(np.mean(values)) and stderr == pytest.approx(reference.sem(values))
    assert math.isnan(stats.mean_stderr([0.5])[1])


def test_estimate_without_groups_is_mean_and_sem_in_percent():
    value, stderr, n = stats.estimate(items([1, 0, 1, 1]))
    assert (value, n) == (75.0, 4) and stderr == pytest.approx(100 * reference.sem([1, 0, 1, 1]))


def test_estimate_is_the_unweighted_mean_of_groups():
    # a: items 0, 1 (mean 1/2); b: items 1, 2, 3 (mean 2/3); item 4 is in neither
    value, stderr, n = stats.estimate(items([1, 0, 1, 1, 0], [["a"], ["a", "b"], ["b"], ["b"], []]))
    psi = [0.5 / 4, -0.5 / 4 - (2 / 3) / 6, (1 / 3) / 6, (1 / 3) / 6]
    assert value == pytest.approx(100 * (1 / 2 + 2 / 3) / 2) and n == 4
    assert stderr == pytest.approx(100 * math.sqrt(4 / 3 * sum(p * p for p in psi)))


def test_stderr_of_overlapping_groups_agrees_with_the_jackknife():
    scores, groups = grouped(0, n=400)
    data = items(scores, groups)
    counted = [i for i, g in enumerate(groups) if g]
    without = np.array([stats.estimate(data[:i] + data[i + 1 :]).value for i in counted])
    jackknife = math.sqrt((len(counted) - 1) / len(counted) * ((without - without.mean()) ** 2).sum())
    assert stats.estimate(data).stderr == pytest.approx(jackknife, rel=0.02)


def test_paired_difference_is_scipy_paired_t_test():
    rng = np.random.default_rng(1)
    a, b = (rng.random((2, 50)) < [[0.7], [0.5]]).astype(float)
    delta, low, high, p = stats.paired_difference(items(a), items(b))
    test = reference.ttest_rel(a, b)
    interval = test.confidence_interval(0.95)
    assert delta == pytest.approx(100 * (a - b).mean()) and p == pytest.approx(test.pvalue)
    assert (low, high) == (pytest.approx(100 * interval.low), pytest.approx(100 * interval.high))


def test_paired_difference_matches_items_by_index_and_groups():
    scores, groups = grouped(2)
    a, b = items(scores, groups), items(1 - scores, groups)
    delta = stats.paired_difference(a, b[::-1]).delta
    assert delta == pytest.approx(stats.estimate(a).value - stats.estimate(b).value)


def test_equal_rows_differ_by_nothing():
    assert stats.paired_difference(items([1, 0]), items([1, 0])) == (0.0, 0.0, 0.0, 1.0)
    assert stats.paired_difference(items([1, 1]), items([0, 0])) == (100.0, 100.0, 100.0, 0.0)


@pytest.mark.parametrize(
    "other", [items([1]), [{**item, "index": "z"} for item in items([1, 0])], items([1, 0], [["a"], []]), []]
)
def test_unpaired_items_are_refused(other):
    with pytest.raises(UserError, match="paired comparison"):
        stats.paired_difference(items([1, 0]), other)


def test_average_difference_adds_variances():
    rng = np.random.default_rng(3)
    pairs, deltas, variances = [], [], []
    for n in (500, 400):
        a, b = (rng.random((2, n)) < [[0.6], [0.5]]).astype(float)
        pairs.append((items(a), items(b)))
        deltas.append((a - b).mean())
        variances.append(reference.sem(a - b) ** 2)
    delta, low, high, _ = stats.paired_average_difference(pairs)
    reach = 100 * 1.96 * math.sqrt(sum(variances)) / 2
    assert delta == pytest.approx(100 * np.mean(deltas)) and (high - low) / 2 == pytest.approx(reach, rel=0.005)


def test_holm():
    # worked by hand: 3 * 0.01; max(0.03, 2 * 0.03); max(0.06, 1 * 0.04)
    assert stats.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0] and stats.holm([]) == []


def test_t_interval_is_scipy():
    values = [61.0, 62.5, 60.2]
    low, high = reference.t.interval(0.95, 2, np.mean(values), reference.sem(values))
    assert stats.t_interval(values) == pytest.approx((np.mean(values), low, high))
    assert stats.t_interval([3.0])[0] == 3.0 and math.isnan(stats.t_interval([3.0])[1])


def test_nothing_to_average_is_an_error():
    for call in (
        lambda: stats.estimate([]),
        lambda: stats.mean_stderr([]),
        lambda: stats.paired_average_difference([]),
    ):
        with pytest.raises(UserError):
            call()
