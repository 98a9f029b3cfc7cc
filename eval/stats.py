"""Statistics over items and over seeds. Scores of items are in [0, 1]; values and differences are in percent.

An *item* is ``{"index": str, "prediction": str, "score": float, "groups": [str, ...]}``.  ``groups`` names the
sub-categories whose unweighted mean is the benchmark's value (MathVista's three overlap); where no item has any,
the value is the plain mean.  Either way the value is linear in the scores, ``sum_i w_i h_i`` with
``w_i = sum_c 1[i in c] / (C n_c)``, so one formula serves both: the delta method over the items,

    psi_i = sum_c 1[i in c] (h_i - p_c) / (C n_c),        stderr = sqrt(n / (n - 1) * sum_i psi_i^2),

which for a single group is the usual standard error of a mean.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from emkit.errors import UserError


class Estimate(NamedTuple):
    """A value in percent, its standard error over items (nan for one item) and the items it rests on."""

    value: float
    stderr: float
    n: int


class Difference(NamedTuple):
    """A paired difference a - b in percentage points, its confidence interval and two-sided p value."""

    delta: float
    low: float
    high: float
    p: float


def mean_stderr(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error (n - 1 in the denominator; nan for one value). :class:`UserError` for none."""
    given = np.asarray(values, dtype=float)
    if given.size == 0:
        raise UserError("the mean of no values: check that the benchmark has items")
    if given.size == 1:
        return float(given[0]), math.nan
    return float(given.mean()), float(given.std(ddof=1) / math.sqrt(given.size))


def memberships(items: Sequence[dict]) -> np.ndarray:
    """Which item counts in which group: bool [items, groups]; one group of all where no item names any."""
    names = sorted({group for item in items for group in item["groups"]})
    if not names:
        return np.ones((len(items), 1), dtype=bool)
    return np.array([[name in item["groups"] for name in names] for item in items])


def _weighted(values: np.ndarray, member: np.ndarray) -> Estimate:
    """Unweighted mean over groups of the group means of ``values`` [items], with its delta-method stderr."""
    sizes = member.sum(axis=0)
    means = values @ member / sizes
    psi = (member * (values[:, None] - means) / (member.shape[1] * sizes)).sum(axis=1)
    n = int(member.any(axis=1).sum())
    stderr = math.sqrt(n / (n - 1) * float(psi @ psi)) if n > 1 else math.nan
    return Estimate(float(means.mean()), stderr, n)


def estimate(items: Sequence[dict]) -> Estimate:
    """The benchmark's value in percent, its standard error over items, and how many items it rests on."""
    if not items:
        raise UserError("no items to score: check that the benchmark has items")
    scores = np.array([item["score"] for item in items], dtype=float)
    value, stderr, n = _weighted(scores, memberships(items))
    return Estimate(100 * value, 100 * stderr, n)


def _paired(items_a: Sequence[dict], items_b: Sequence[dict]) -> Estimate:
    by_index = {item["index"]: item for item in items_b}
    if len(items_a) != len(items_b) or {item["index"] for item in items_a} != set(by_index):
        raise UserError("paired comparison of different items: score both rows on the same benchmark data")
    if not items_a:
        raise UserError("paired comparison of no items: check that the benchmark has items")
    if any(item["groups"] != by_index[item["index"]]["groups"] for item in items_a):
        raise UserError("paired comparison of differently grouped items: score both rows on the same benchmark data")
    differences = np.array([item["score"] - by_index[item["index"]]["score"] for item in items_a], dtype=float)
    delta, stderr, n = _weighted(differences, memberships(items_a))
    return Estimate(100 * delta, 100 * stderr, n)


def _interval(delta: float, stderr: float, df: float, confidence: float) -> Difference:
    if math.isnan(stderr):
        return Difference(delta, math.nan, math.nan, math.nan)
    if stderr == 0:
        return Difference(delta, delta, delta, 1.0 if delta == 0 else 0.0)
    df = min(df, 1e9)
    reach = float(special.stdtrit(df, 0.5 + confidence / 2)) * stderr
    p = 2 * float(special.stdtr(df, -abs(delta) / stderr))
    return Difference(delta, delta - reach, delta + reach, p)


def paired_difference(items_a: Sequence[dict], items_b: Sequence[dict], confidence: float = 0.95) -> Difference:
    """Value of a minus value of b on the same items (matched by index), with a paired t interval over items."""
    delta, stderr, n = _paired(items_a, items_b)
    return _interval(delta, stderr, n - 1, confidence)


def paired_average_difference(
    pairs: Sequence[tuple[Sequence[dict], Sequence[dict]]], confidence: float = 0.95
) -> Difference:
    """Difference of two rows' ``Avg``: the mean over benchmarks of the paired differences.

    ``pairs`` holds one ``(items_a, items_b)`` per benchmark; benchmarks are independent samples, so the variances
    add (degrees of freedom: Welch-Satterthwaite).
    """
    if not pairs:
        raise UserError("average over no benchmarks: name at least one")
    estimates = [_paired(items_a, items_b) for items_a, items_b in pairs]
    variances = [(estimate.stderr / len(pairs)) ** 2 for estimate in estimates]
    total = sum(variances)
    shares = sum(v**2 / max(e.n - 1, 1) for v, e in zip(variances, estimates, strict=True))
    df = total**2 / shares if shares else math.inf
    return _interval(sum(e.value for e in estimates) / len(pairs), math.sqrt(total), df, confidence)


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p values, in the order given (Holm 1979)."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = largest
    return adjusted


def t_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean and Student t interval ``(mean, low, high)`` over independent values, such as seeds (nan ends for one)."""
    mean, stderr = mean_stderr(values)
    low, high = _interval(mean, stderr, max(len(values) - 1, 1), confidence)[1:3]
    return mean, low, high
