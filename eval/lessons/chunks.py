"""Eq. 4 seen: how κ and B spread the chunks of Expert Merging++, and the same budget spent in other ways."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from emkit import Live, pictures
from emkit.alignment.importance import allocate_chunks
from emkit.coefficients import Coefficients
from emkit.errors import UserError
from emkit.pictures import COLOURS
from eval import style
from eval.lessons import probe
from eval.lessons.importance import SUBMODULES, placed
from eval.lessons.short_fits import ShortFit

Chunks = dict[str, int]
STAGE1, ONE_EACH, IMPORTANCE, RANDOM = "Expert Merging", "one each, fitted on", "by importance", "at random"


# ------------------------------------------------------------------------------------------------- Eq. 4 and its dials
def counts(importance: Mapping[str, float], budgets: Sequence[float], kappas: Sequence[float]) -> pd.DataFrame:
    """m_ℓ of Eq. 4: a line a merged tensor, the most important first, a column a pair (κ, B)."""
    columns = {(kappa, b): allocate_chunks(dict(importance), b, kappa) for kappa in kappas for b in budgets}
    order = sorted(importance, key=lambda name: -importance[name])
    return pd.DataFrame(columns, index=order).rename_axis(columns=["kappa", "budget"])


def dials(importance: Mapping[str, float], budgets: Sequence[float], kappas: Sequence[float]) -> Figure:
    """Small multiples of :func:`counts`: a row a κ, a column a B."""
    found = counts(importance, budgets, kappas)
    size = (style.WIDTH, 0.7 + 1.55 * len(kappas))
    made, axes = plt.subplots(len(kappas), len(budgets), figsize=size, sharex=True, sharey="row", squeeze=False)
    for row, kappa in zip(axes, kappas):
        for axis, b in zip(row, budgets):
            axis.set_title(f"κ = {kappa:g}, B = {b:g} L\n{_draw(axis, found[kappa, b])}", fontsize=9)
    made.supylabel("chunks m", fontsize=10)
    made.supxlabel("merged tensors, the most important first", fontsize=10)
    return made


def one(importance: Mapping[str, float], budget: float, kappa: float) -> Figure:
    """:func:`counts` for one pair, with the tensors' names: what a slider redraws."""
    found = counts(importance, [budget], [kappa])[kappa, budget]
    made, axis = plt.subplots(figsize=(style.WIDTH, 3.4))
    axis.set_title(f"κ = {kappa:g}, B = {budget:g} L: {_draw(axis, found)}")
    axis.set_xticks(range(len(found)), [short(name) for name in found.index], rotation=90)
    axis.set(ylabel="chunks m")
    return made


def slider(importance: Mapping[str, float]):
    """:func:`one` under two sliders, for a notebook with a kernel: a box of widgets, the last of them the picture."""
    import ipywidgets

    made = {"step": 0.1, "continuous_update": False}
    budget = ipywidgets.FloatSlider(1.0, min=0.5, max=4.0, description="B / L", **made)
    kappa = ipywidgets.FloatSlider(1.2, min=0.0, max=4.0, description="κ", **made)
    picture = ipywidgets.Image(format="png", width=round(style.WIDTH * style.DOTS))

    def redraw(change: object = None) -> None:
        figure = one(importance, budget.value, kappa.value)
        picture.value = pictures.png(figure)
        plt.close(figure)

    for dial in (budget, kappa):
        dial.observe(redraw, "value")
    redraw()
    return ipywidgets.VBox([budget, kappa, picture])


def _draw(axis, found: pd.Series) -> str:
    """Bars of chunk counts, crosses where there is none; returns what they add up to."""
    at, m = np.arange(len(found)), found.to_numpy()
    axis.bar(at, m, 0.85, color=COLOURS[0])
    axis.plot(at[m == 0], np.zeros((m == 0).sum()), "x", color=COLOURS[1], ms=4)
    axis.use_sticky_edges = False  # room for the crosses
    axis.yaxis.get_major_locator().set_params(integer=True)
    return f"{m.sum()} chunks, {(m == 0).sum()} without"


def short(name: str) -> str:
    """A tensor's name for an axis: its block's number and submodule, or the end of its name."""
    parts = name.removesuffix(".weight").split(".")
    block = next((part for part in parts if part.isdigit()), None)
    return parts[-1] if block is None else f"{block} {SUBMODULES.get(parts[-1], parts[-1])}"


def by_submodule(importance: Mapping[str, float], chunks: Mapping[str, int], backbone: str) -> pd.DataFrame:
    """Of each submodule (and of tensors outside the blocks) its tensors, its importance, and the chunks it got."""
    frame = placed(list(importance), backbone).fillna({"submodule": "outside the blocks"}).set_index("tensor")
    frame = frame.assign(importance=pd.Series(importance), chunks=pd.Series(chunks)).groupby("submodule", sort=False)
    found = frame.agg(tensors=("chunks", "size"), importance=("importance", "sum"), chunks=("chunks", "sum"))
    none = frame["chunks"].agg(lambda m: int((m == 0).sum()))
    order = [*SUBMODULES.values(), "outside the blocks"]
    return found.assign(without=none).rename(columns={"without": "tensors without"}).reindex(order).dropna()


# ------------------------------------------------------------------------------------------ equal budgets, other ways
def uniform(chunks: Mapping[str, int]) -> Chunks:
    """The same total, spread as evenly as it goes: the tensors that get one more lie at equal distances."""
    total, names = sum(chunks.values()), list(chunks)
    bounds = [i * total // len(names) for i in range(len(names) + 1)]
    return {name: bounds[i + 1] - bounds[i] for i, name in enumerate(names)}


def at_random(chunks: Mapping[str, int], numel: Mapping[str, int], seed: int) -> Chunks:
    """The same counts, dealt to the tensors in random order."""
    order = np.random.default_rng(seed).permutation(list(chunks)).tolist()
    return _dealt(chunks, order, numel)


def inverse(chunks: Mapping[str, int], importance: Mapping[str, float], numel: Mapping[str, int]) -> Chunks:
    """The same counts, the largest to the least important tensor."""
    return _dealt(chunks, sorted(chunks, key=lambda name: importance[name]), numel)


def _dealt(chunks: Mapping[str, int], order: Sequence[str], numel: Mapping[str, int]) -> Chunks:
    dealt = dict(zip(order, sorted(chunks.values(), reverse=True)))
    for name, m in dealt.items():
        if m > numel[name]:
            raise UserError(f"'{name}' has {numel[name]} entries, too few for {m} chunks: lower the budget or kappa")
    return {name: dealt[name] for name in chunks}


def budgets(
    chunks: Mapping[str, int], importance: Mapping[str, float], numel: Mapping[str, int], draws: int
) -> dict[str, Chunks]:
    """The same number of chunks spent in each way; and one for each tensor, which is Expert Merging fitted on."""
    ways = {IMPORTANCE: dict(chunks), "evenly": uniform(chunks), "by its inverse": inverse(chunks, importance, numel)}
    ways |= {f"{RANDOM} {seed + 1}": at_random(chunks, numel, seed) for seed in range(draws)}
    return ways | {ONE_EACH: dict.fromkeys(chunks, 1)}


def fitted(fit: ShortFit, stage1: Coefficients, ways: Mapping[str, Chunks]) -> dict[str, Coefficients]:
    """What each way of spending learns, all from ``stage1`` with the same samples and steps; and ``stage1`` itself."""
    return {STAGE1: stage1, **{way: fit.chunked(stage1, chunks) for way, chunks in ways.items()}}


def compared(
    found: Mapping[str, Coefficients], fit: ShortFit, live: Live, questions: Sequence[probe.Question]
) -> pd.DataFrame:
    """Each merge: its trained coefficients for each expert, its alignment loss on the calibration samples
    (:meth:`ShortFit.loss`), and loss (nats a token) and accuracy (%) on validation questions."""
    lines = {}
    for way, coefficients in found.items():
        live.set(coefficients)
        trained = 0 if way == STAGE1 else len(coefficients.flat()) // len(coefficients.experts)
        lines[way] = {
            "coefficients": trained,
            "alignment loss": fit.loss(coefficients),
            "validation loss": probe.loss(live, questions),
            "accuracy": 100 * probe.accuracy(live, questions),
        }
    return pd.DataFrame(lines).T.astype({"coefficients": int})


def said(table: pd.DataFrame) -> str:
    """What :func:`compared` comes to, in Markdown: by each measure, where importance lies among the draws at random."""
    lines = []
    for measure in ("alignment loss", "validation loss", "accuracy"):
        drawn = table.loc[[name for name in table.index if _way(name) == RANDOM], measure]
        value, best = table.loc[IMPORTANCE, measure], "highest" if measure == "accuracy" else "lowest"
        where = "below" if value < drawn.min() else "above" if value > drawn.max() else "within"
        leader = table[measure].idxmax() if measure == "accuracy" else table[measure].idxmin()
        digits = ".1f" if measure == "accuracy" else ".4f"
        lines.append(
            f"- **{measure}**: by importance {value:{digits}}, {where} the range of the draws at random "
            f"({drawn.min():{digits}} to {drawn.max():{digits}}); {best} is *{leader}* "
            f"({table.loc[leader, measure]:{digits}})"
        )
    return "\n".join(lines)


def comparison(table: pd.DataFrame) -> Figure:
    """:func:`compared` as points; the draws at random share a line, and first-stage values are a dashed line."""
    measures = [name for name in table.columns if name != "coefficients"]
    ways = list(dict.fromkeys(_way(name) for name in table.index if name != STAGE1))
    made, axes = plt.subplots(1, len(measures), figsize=(style.WIDTH, 2.8), sharey=True)
    for axis, measure in zip(axes, measures):
        for name, value in table[measure].drop(STAGE1).items():
            special = COLOURS[1] if name == IMPORTANCE else COLOURS[0]
            axis.plot(value, ways.index(_way(name)), "o", color=special, ms=7, alpha=0.8)
        axis.axvline(table.loc[STAGE1, measure], color=style.GREY, ls="--", lw=1)
        axis.set_xlabel(measure + {"accuracy": " (%)"}.get(measure, ""))
    axes[0].set_yticks(range(len(ways)), ways)
    axes[0].set_ylim(len(ways) - 0.5, -0.5)
    return made


def _way(name: str) -> str:
    return RANDOM if name.startswith(RANDOM) else name


# ------------------------------------------------------------------------------------------------ what the chunks learn
def spread(coefficients: Coefficients) -> pd.DataFrame:
    """Of every tensor with two or more chunks and every expert: the least and the largest α, and their difference."""
    lines = [
        (short(name), expert, value.shape[1], row.min(), row.max(), row.max() - row.min())
        for name, value in coefficients.values.items()
        for expert, row in zip(coefficients.experts, value)
        if value.shape[1] > 1
    ]
    return pd.DataFrame(lines, columns=["tensor", "expert", "chunks", "least α", "largest α", "difference"])


def within(coefficients: Coefficients, stage1: Coefficients) -> Figure:
    """The chunks' α of every tensor with two or more, an expert a colour; a short line is at the first stage's α."""
    names = [name for name, value in coefficients.values.items() if value.shape[1] > 1]
    if not names:
        raise UserError("no tensor has two chunks: raise the budget or kappa")
    made, axis = plt.subplots(figsize=(style.WIDTH, 3.4))
    width = 0.8 / len(coefficients.experts)
    for k, expert in enumerate(coefficients.experts):
        for i, name in enumerate(names):
            alpha, at = coefficients.values[name][k], i + (k - (len(coefficients.experts) - 1) / 2) * width
            axis.plot([at] * len(alpha), alpha, "o-", color=COLOURS[k], ms=4, lw=1, label=expert if i == 0 else None)
            first = stage1.values[name][k, 0]
            axis.plot([at - width / 2.5, at + width / 2.5], [first, first], color="0.2", lw=1)
    axis.set_xticks(range(len(names)), [short(name) for name in names], rotation=90)
    axis.set_ylabel("α of the chunks")
    made.legend(loc="outside lower center", ncols=len(coefficients.experts) + 1)
    return made
