"""What Figures 3 to 5 say: the paper's sentences beside our numbers, and which of I_ℓ's three factors decides it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from emkit.alignment.importance import allocate_chunks, layer_importance
from emkit.coefficients import Coefficients
from emkit.task_vectors import TaskVectors
from eval import style
from eval.lessons.importance import STAGES, SUBMODULES, TITLES, markdown, mlp_share, placed, shares, stage_colours
from eval.lessons.probe import Zoo
from eval.lessons.short_fits import Learned

ALONE, ALL = "parameters alone", "I (all three)"
ALIKE = "(all alike: nothing was learned)"


# -------------------------------------------------------------------------------------------- the paper's own sentences
def claims(frames: Mapping[str, pd.DataFrame], shapes: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The paper's sentences on its Figures 3 to 5, a line each, and in a column a backbone what ours shows: yes or no,
    and the number. ``frames``: :func:`eval.lessons.importance.layers`; ``shapes``: ``published``, where there are."""
    lines = []
    for said, where, found in _CLAIMS:
        ours = {TITLES.get(name, name): found(name, frame, shapes.get(name)) for name, frame in frames.items()}
        lines.append({"the paper says": f"{said} ({where})", **ours})
    return pd.DataFrame(lines)


def claimed(frames: Mapping[str, pd.DataFrame], shapes: Mapping[str, pd.DataFrame]) -> str:
    """:func:`claims` as a Markdown table."""
    found = claims(frames, shapes)
    return markdown(list(found.columns), found.to_numpy().tolist())


def _mean(frame: pd.DataFrame, value: str) -> pd.Series:
    return shares(frame, value, ["submodule"]).mean(axis=1)


def _parameters(name: str, frame: pd.DataFrame, shape: pd.DataFrame | None) -> str:
    ours = f"{100 * mlp_share(frame):.0f} % in the model here"
    return ours if shape is None else f"{100 * mlp_share(shape):.1f} % by the published shape; {ours}"


def _leader(name: str, frame: pd.DataFrame, shape: pd.DataFrame | None) -> str:
    return _extreme(frame, "coefficient", {"internvl": "Down", "qwen2_vl": "Q", "mistral": "K"}.get(name), largest=True)


def _smallest(name: str, frame: pd.DataFrame, shape: pd.DataFrame | None) -> str:
    return _extreme(frame, "coefficient", "O", largest=False)


def _down(name: str, frame: pd.DataFrame, shape: pd.DataFrame | None) -> str:
    return _extreme(frame, "importance", "Down", largest=True) if name == "internvl" else "(said of InternVL)"


def _extreme(frame: pd.DataFrame, value: str, expected: str | None, largest: bool) -> str:
    each = shares(frame, value, ["submodule"])
    mean = each.mean(axis=1)
    if _alike(mean):
        return ALIKE
    found = mean.idxmax() if largest else mean.idxmin()
    seeds = each.idxmax() if largest else each.idxmin()
    repeated = f", {int((seeds == found).sum())} of {len(seeds)} seeds" if len(seeds) > 1 else ""
    return f"{_yes(found == expected)}{found} ({mean[found]:.3f}{repeated})"


def _even(name: str, frame: pd.DataFrame, shape: pd.DataFrame | None) -> str:
    mean = _mean(frame, "coefficient")
    if _alike(mean):
        return ALIKE
    return f"{_yes(mean.min() >= 0.125 and mean.max() < 0.165)}{mean.min():.3f} to {mean.max():.3f}"


def _largest_two(name: str, frame: pd.DataFrame, shape: pd.DataFrame | None) -> str:
    mean = _mean(frame, "importance").sort_values(ascending=False)
    first = list(mean.index[:3])
    return f"{_yes(set(first[:2]) == {'Gate', 'Up'} and first[2] == 'Down')}{', '.join(first)}"


def _least_two(name: str, frame: pd.DataFrame, shape: pd.DataFrame | None) -> str:
    last = list(_mean(frame, "importance").sort_values().index[:2])
    return f"{_yes(set(last) == {'K', 'V'})}{', '.join(last)}"


def _late(value: str, whole: bool) -> Callable[[str, pd.DataFrame, pd.DataFrame | None], str]:
    def found(name: str, frame: pd.DataFrame, shape: pd.DataFrame | None) -> str:
        cells = shares(frame, value, ["submodule", "stage"]).mean(axis=1).unstack()[list(STAGES)]
        if _alike(cells.stack()):
            return ALIKE
        rising = int((cells["late"] > cells["early"] * (1 + 1e-9)).sum())
        total = ", ".join(f"{part:.2f}" for part in cells.sum())
        return f"{_yes(rising == len(SUBMODULES))}late above early in {rising} of {len(SUBMODULES)}" + (
            f" (stages: {total})" if whole else ""
        )

    return found


def _alike(values: pd.Series) -> bool:
    """Whether nothing was learned that could differ: Task Arithmetic's coefficients stand in."""
    return bool(values.max() - values.min() < 1e-9)


def _yes(holds: bool) -> str:
    return "yes: " if holds else "no: "


_CLAIMS: list[tuple[str, str, Callable[[str, pd.DataFrame, pd.DataFrame | None], str]]] = [
    (
        "Gate, Up and Down hold about 87 % of the parameters in Qwen and InternVL, 81 % in Mistral",
        "Figure 3a",
        _parameters,
    ),
    ("the largest |α| is Down's on InternVL, Q's on Qwen2-VL, K's on Mistral", "Figure 3b", _leader),
    ("the smallest |α| is O's on all three", "Figure 3b", _smallest),
    ("shares of |α| are even, 0.13 to 0.16 a submodule", "Appendix C.1", _even),
    ("|α| is larger in late blocks than in early ones, for every submodule", "Figure 5", _late("coefficient", True)),
    ("Gate and Up have the most importance, then Down", "Figure 4", _largest_two),
    ("Down has the most importance of all on InternVL", "Figure 4", _down),
    ("K and V have the least importance", "Figure 4", _least_two),
    ("importance lies in the late third, for every submodule", "Figure 4", _late("importance", True)),
]


# ---------------------------------------------------------------------------------------------------- the three factors
def roles(coefficients: Coefficients, vectors: TaskVectors, backbone: str) -> pd.DataFrame:
    """I_ℓ, and what it would be with some factors held constant; a line a merged tensor, each column sums to 1."""
    names = list(vectors.names)
    n = pd.Series({name: float(vectors.numel(name)) for name in names})
    alpha = pd.Series({name: float(abs(coefficients.values[name]).sum()) for name in names})
    one = Coefficients.constant(names, dict.fromkeys(vectors.experts, 1.0))
    frame = pd.DataFrame(
        {
            ALONE: n / n.sum(),
            "parameters and |α|": n * alpha / (n * alpha).sum(),
            "parameters and |τ|": pd.Series(layer_importance(one, vectors)),
            ALL: pd.Series(layer_importance(coefficients, vectors)),
        }
    )
    return placed(names, backbone).set_index("tensor").join(frame)


def agreement(found: pd.DataFrame, budget: float = 1.0, kappa: float = 1.2) -> pd.DataFrame:
    """How close each simpler measure of :func:`roles` comes to I_ℓ: Spearman's ρ over tensors, the part of the budget
    that lies alike (1 − half the sum of differences), and how many tensors Eq. 4 would give the same chunks."""
    lines, whole = {}, found[ALL]
    counts = pd.Series(allocate_chunks(whole.to_dict(), budget, kappa))
    for name in found.columns[found.columns.get_loc(ALONE) :].drop(ALL):
        same = pd.Series(allocate_chunks(found[name].to_dict(), budget, kappa)) == counts
        lines[name] = {
            "Spearman's ρ with I": stats.spearmanr(found[name], whole).statistic,
            "in the same place": 1 - (found[name] - whole).abs().sum() / 2,
            "same chunks": f"{int(same.sum())} of {len(same)}",
        }
    return pd.DataFrame(lines).T


def reach(frame: pd.DataFrame) -> pd.DataFrame:
    """How far each factor varies over the merged tensors of the blocks: its 90th percentile over its 10th."""
    inside = frame[frame["submodule"].notna()]
    names = {"parameters": "parameters n", "tau": "mean |τ|", "coefficient": "|α|", "importance": "I"}
    each = inside.groupby("seed")[list(names)].quantile([0.1, 0.9]).unstack()
    ratio = {label: (each[key][0.9] / each[key][0.1]).mean() for key, label in names.items()}
    return pd.DataFrame({"90th / 10th percentile": ratio})


def reaches(frames: Mapping[str, pd.DataFrame]) -> str:
    """:func:`reach` of several backbones, as a Markdown table with a line a backbone, and the factor that leads."""
    each = {TITLES.get(name, name): reach(frame).iloc[:, 0] for name, frame in frames.items()}
    heads = ["90th / 10th percentile of", *next(iter(each.values())).index, "varies most"]
    lines = [[title, *(f"{value:.2f}" for value in found), found[:-1].idxmax()] for title, found in each.items()]
    return markdown(heads, lines)


def all_roles(learned: Mapping[str, Learned], zoos: Mapping[str, Zoo]) -> dict[str, pd.DataFrame]:
    """:func:`roles` of each backbone, with the coefficients of its first seed."""
    first = {name: each.seeds[min(each.seeds)] for name, each in learned.items()}
    return {name: roles(first[name], zoo.experts.vectors, name) for name, zoo in zoos.items()}


def agreements(found: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """:func:`agreement` of each backbone, one below the other."""
    each = {TITLES.get(name, name): agreement(frame) for name, frame in found.items()}
    return pd.concat(each, names=["backbone", "measure"])


def against_parameters(found: Mapping[str, pd.DataFrame]) -> Figure:
    """I_ℓ over what it would be with parameters alone: a point a merged tensor of a block, a panel a backbone."""
    made, axes = plt.subplots(1, len(found), figsize=(style.WIDTH, 3.4), sharey=True, squeeze=False)
    for axis, (backbone, frame) in zip(axes[0], found.items()):
        inside = frame[frame["submodule"].notna()]
        at = inside["submodule"].map(list(SUBMODULES.values()).index)
        for i, (stage, colour) in enumerate(stage_colours().items()):
            own = inside["stage"] == stage
            quotient = inside.loc[own, ALL] / inside.loc[own, ALONE]
            axis.plot(at[own] + (i - 1) * 0.25, quotient, "o", color=colour, ms=5, label=stage)
        axis.axhline(1, color=style.GREY, lw=1, zorder=0)
        axis.set_xticks(range(len(SUBMODULES)), list(SUBMODULES.values()), rotation=90)
        axis.set(title=TITLES.get(backbone, backbone), ylim=(0, None))
    axes[0][0].set_ylabel("I / share of the parameters")
    handles = axes[0][0].get_legend_handles_labels()
    made.legend(*handles, loc="outside lower center", ncols=3, title="third of the depth", title_fontsize=9)
    return made
