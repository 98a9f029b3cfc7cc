"""Does importance predict damage? One merged tensor at a time is put back to the base, and the loss asked for again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from emkit import Live
from emkit.alignment.importance import layer_importance
from emkit.coefficients import Coefficients
from emkit.pictures import COLOURS
from emkit.task_vectors import TaskVectors
from eval import style
from eval.lessons import probe
from eval.lessons.importance import SUBMODULES, placed

DAMAGE = "damage"
PREDICTORS = ("importance I", "parameters n", "norm of τ", "norm of Σ α τ")


def reset(coefficients: Coefficients, name: str) -> Coefficients:
    """The same coefficients with 0 for every expert and chunk of one tensor, which is then the base's."""
    values = {**coefficients.values, name: np.zeros_like(coefficients.values[name])}
    return Coefficients(coefficients.experts, values, coefficients.fixed)


def damage(
    live: Live,
    coefficients: Coefficients,
    questions: Sequence[probe.Question],
    loss: Callable[[Live, Sequence[probe.Question]], float] = probe.loss,
) -> pd.DataFrame:
    """By tensor, how much ``loss`` rises when this one alone is put back to the base; negative where that helps.

    ``half 1`` and ``half 2`` are of two halves drawn by lot, ``damage`` is their mean: how far the halves agree says
    how much of it is chance of the questions. (Not every other question: an expert's columns take turns.)
    """
    order = np.random.default_rng(0).permutation(len(questions)).tolist()
    middle = len(order) // 2
    halves = [[questions[i] for i in part] for part in (order[:middle], order[middle:])]
    whole = [loss(live.set(coefficients), half) for half in halves]
    lines = {}
    for name in coefficients.values:
        live.set(reset(coefficients, name))
        lines[name] = [loss(live, half) - before for half, before in zip(halves, whole)]
    live.set(coefficients)
    frame = pd.DataFrame.from_dict(lines, orient="index", columns=["half 1", "half 2"])
    return frame.assign(**{DAMAGE: frame.mean(axis=1)})


def predictors(coefficients: Coefficients, vectors: TaskVectors, backbone: str) -> pd.DataFrame:
    """By tensor, what might foretell the damage: I_ℓ, n_ℓ, the mean over experts of ‖τ_k^ℓ‖, and ‖Σ_k α_k^ℓ τ_k^ℓ‖,
    the length of what the merge adds to the base."""
    lines = {}
    for name in vectors.names:
        tau = vectors.tau(name).flatten(1).double().numpy()  # [K, n]
        added = (coefficients.expand(name, tau.shape[1]) * tau).sum(axis=0)
        lines[name] = [tau.shape[1], np.linalg.norm(tau, axis=1).mean(), np.linalg.norm(added)]
    frame = pd.DataFrame.from_dict(lines, orient="index", columns=list(PREDICTORS[1:]))
    frame.insert(0, PREDICTORS[0], pd.Series(layer_importance(coefficients, vectors)))
    return placed(list(vectors.names), backbone).set_index("tensor").join(frame)


def correlations(frame: pd.DataFrame, resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Spearman's ρ of each predictor with the damage over tensors, its 95 % interval (a bootstrap that draws tensors;
    percentiles), and, over the same draws, ρ of importance less this one's with its interval."""
    hurt, first = frame[DAMAGE].to_numpy(), frame[PREDICTORS[0]].to_numpy()
    lines = {}
    for name in PREDICTORS:
        this, draws = frame[name].to_numpy(), {"n_resamples": resamples, "seed": seed}
        low, high = _interval(_rho, (this, hurt), **draws)
        less = lambda x, y, z, axis=-1: _rho(x, z, axis) - _rho(y, z, axis)  # noqa: E731
        below, above = _interval(less, (first, this, hurt), **draws)
        lines[name] = [_rho(this, hurt), low, high, less(first, this, hurt), below, above]
    columns = ["ρ", "from", "to", "ρ of I less this", "least", "most"]
    return pd.DataFrame.from_dict(lines, orient="index", columns=columns)


def _rho(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
    """Spearman's ρ along ``axis``: Pearson's of the ranks."""
    return stats.pearsonr(stats.rankdata(x, axis=axis), stats.rankdata(y, axis=axis), axis=axis).statistic


def _interval(statistic: Callable, data: tuple[np.ndarray, ...], n_resamples: int, seed: int) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    found = stats.bootstrap(data, statistic, paired=True, n_resamples=n_resamples, method="percentile", rng=rng)
    return found.confidence_interval


def verdict(frame: pd.DataFrame) -> str:
    """What :func:`correlations` come to, in a few sentences of Markdown."""
    rho = correlations(frame)
    first = rho.loc[PREDICTORS[0]]
    foretells = "foretells" if first["from"] > 0 else "points the wrong way for" if first["to"] < 0 else _NOTHING
    lines = [
        f"Over {len(frame)} tensors importance **{foretells} the damage** of a lesion: Spearman's ρ = {first['ρ']:.2f} "
        f"(95 % interval {first['from']:.2f} to {first['to']:.2f}). The damage on one half of the questions has "
        f"ρ = {halves(frame):.2f} with that on the other{'' if halves(frame) > RELIABLE else _NOISY}.",
        "",
    ]
    for other in PREDICTORS[1:]:
        found = rho.loc[other]
        low, high = found["least"], found["most"]
        said = "better than" if low > 0 else "worse than" if high < 0 else "not shown to differ from"
        less = f"{found['ρ of I less this']:+.2f} ({low:+.2f} to {high:+.2f})"
        lines.append(f"- it is {said} *{other}*, with ρ = {found['ρ']:.2f}: the difference is {less}")
    helped = int((frame[DAMAGE] < 0).sum())
    return "\n".join([*lines, f"- without {helped} of the tensors' task vectors the loss is lower"])


RELIABLE = 0.8  # halves that agree less leave much of the damage to the chance of the questions
_NOTHING = "is not shown to foretell"
_NOISY = ": much of it is the chance of which questions were asked, and no measure could foretell that part. Ask more"


def halves(frame: pd.DataFrame) -> float:
    """Spearman's ρ of the damage on one half of the questions with that on the other."""
    return float(_rho(frame["half 1"].to_numpy(), frame["half 2"].to_numpy()))


def scatter(frame: pd.DataFrame) -> Figure:
    """Damage over each predictor, a point a tensor, a colour a submodule."""
    rho = correlations(frame)
    made, axes = plt.subplots(1, len(PREDICTORS), figsize=(style.WIDTH, 3.2), sharey=True)
    for axis, name in zip(axes, PREDICTORS):
        for colour, submodule in zip(COLOURS, SUBMODULES.values()):
            own = frame[frame["submodule"] == submodule]
            axis.plot(own[name], own[DAMAGE], "o", color=colour, ms=5, alpha=0.85, label=submodule)
        others = frame[frame["submodule"].isna()]
        axis.plot(others[name], others[DAMAGE], "x", color="0.3", ms=6, label="others" if len(others) else None)
        axis.axhline(0, color=style.GREY, lw=1, zorder=0)
        axis.set(xscale="log", xlabel=name)
        axis.set_title(
            f"ρ = {rho.loc[name, 'ρ']:.2f} ({rho.loc[name, 'from']:.2f} to {rho.loc[name, 'to']:.2f})", fontsize=9
        )
        axis.tick_params(axis="x", which="minor", labelbottom=False)
    axes[0].set_ylabel("rise of the loss (nats)")
    made.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=8)
    return made


def within_sizes(frame: pd.DataFrame) -> pd.DataFrame:
    """Spearman's ρ of importance with damage among tensors of one size, which parameters cannot tell apart."""
    lines = {}
    for n, own in frame.groupby(PREDICTORS[1]):
        if len(own) > 3:
            rho = float(_rho(own[PREDICTORS[0]].to_numpy(), own[DAMAGE].to_numpy()))
            kinds = ", ".join(own["submodule"].fillna("others").unique())
            lines[int(n)] = {"tensors": len(own), "submodules": kinds, "ρ": rho}
    return pd.DataFrame(lines).T.rename_axis("parameters")


def worst(frame: pd.DataFrame, n: int = 5) -> pd.DataFrame:
    """The tensors whose loss costs most, with their place in the order of importance (1: the most important)."""
    place = frame[PREDICTORS[0]].rank(ascending=False).astype(int).rename("place by I")
    return frame[["block", "submodule", DAMAGE]].join(place).nlargest(n, DAMAGE)
