"""Figures 3, 4 and 5 of the paper: what share of parameters, coefficients and importance lies in which submodule.

A *submodule* is one of the seven matrices of a block. A *stage* is a third of the depth: block b of n (from 0) is in
stage ⌊3 (b + ½) / n⌋, which is symmetric where n is no multiple of 3. A share is the mean over a cell's tensors,
divided by the sum over cells, so that stages of unequal length compare; where they are equal it is the plain share.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from emkit import backbones
from emkit.alignment.importance import layer_importance
from emkit.coefficients import Coefficients
from emkit.pictures import COLOURS
from emkit.task_vectors import TaskVectors
from eval import style
from eval.lessons.short_fits import Learned

SUBMODULES = {
    "q_proj": "Q", "k_proj": "K", "v_proj": "V", "o_proj": "O",
    "gate_proj": "Gate", "up_proj": "Up", "down_proj": "Down",
}  # fmt: skip
MLP = ("Gate", "Up", "Down")
STAGES = ("early", "middle", "late")
TITLES = {"internvl": "InternVL", "qwen2_vl": "Qwen2-VL", "mistral": "Mistral"}

# The sizes that decide which matrices a block has, from the config.json of the published models; InternVL2.5-1B's
# language model is Qwen2.5-0.5B
_KEYS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size")
PUBLISHED = {
    "internvl": ("InternVL2.5-1B", dict(zip(_KEYS, (896, 24, 14, 2, 4864)))),
    "qwen2_vl": ("Qwen2-VL-7B", dict(zip(_KEYS, (3584, 28, 28, 4, 18944)))),
    "mistral": ("Mistral-7B-v0.1", dict(zip(_KEYS, (4096, 32, 32, 8, 14336)))),
}


# ---------------------------------------------------------------------------------------------------------- the numbers
def place(name: str, backbone: str, blocks: int) -> tuple[int, str | None, str | None]:
    """Block, submodule and stage of a merged tensor; −1, None and None for one outside the blocks (a projector)."""
    block = backbones.get(backbone).merged_block(name)
    if block is None or block < 0:
        return -1, None, None
    kind = name.removesuffix(".weight").rpartition(".")[2]
    return block, SUBMODULES.get(kind, kind), STAGES[int(3 * (block + 0.5) / blocks)]


def placed(names: list[str], backbone: str) -> pd.DataFrame:
    """Columns ``tensor``, ``block``, ``submodule`` and ``stage``, a line a merged tensor."""
    found = [backbones.get(backbone).merged_block(name) for name in names]
    blocks = max((block for block in found if block is not None), default=-1) + 1
    lines = [(name, *place(name, backbone, blocks)) for name in names]
    return pd.DataFrame(lines, columns=["tensor", "block", "submodule", "stage"])


def factors(coefficients: Coefficients, vectors: TaskVectors, backbone: str) -> pd.DataFrame:
    """The three factors of I_ℓ (Section 3.3), a line for each merged tensor and expert.

    ``alpha`` α_k^ℓ, ``mean_tau`` mean |τ_k^ℓ| (not yet normalised) and ``n`` n_ℓ, with ``tensor``, ``expert`` and where
    the tensor lies (:func:`placed`).
    """
    lines = []
    for name in vectors.names:
        tau = vectors.tau(name)  # [K, *shape]
        sizes = tau.abs().flatten(1).double().mean(dim=1).tolist()
        for expert, alpha, size in zip(vectors.experts, coefficients.values[name].mean(axis=1), sizes):
            lines.append((name, expert, float(alpha), size, vectors.numel(name)))
    made = pd.DataFrame(lines, columns=["tensor", "expert", "alpha", "mean_tau", "n"])
    return made.merge(placed(list(vectors.names), backbone), on="tensor")


def layers(learned: Learned, vectors: TaskVectors, backbone: str) -> pd.DataFrame:
    """A line for each seed and merged tensor, with what the figures show.

    ``parameters`` n_ℓ; ``coefficient`` the mean over experts of |α_k^ℓ|; ``tau`` the mean over experts of s_k^ℓ, which
    sums to 1 over tensors; ``importance`` I_ℓ of :func:`emkit.alignment.importance.layer_importance`.
    """
    frames = []
    for seed, coefficients in learned.seeds.items():
        each = factors(coefficients, vectors, backbone)
        each["coefficient"] = each["alpha"].abs()
        each["tau"] = each["mean_tau"] / each.groupby("expert")["mean_tau"].transform("sum")
        by = each.groupby("tensor", sort=False)
        frame = by[["coefficient", "tau"]].mean().assign(parameters=by["n"].first())
        frame["importance"] = pd.Series(layer_importance(coefficients, vectors))
        where = placed(list(vectors.names), backbone)
        frames.append(where.merge(frame.reset_index(), on="tensor").assign(seed=seed))
    return pd.concat(frames, ignore_index=True)


def shares(frame: pd.DataFrame, value: str, by: list[str]) -> pd.DataFrame:
    """The share of ``value`` in each cell of ``by`` (``submodule``, or that and ``stage``): a line a cell, a column a
    seed; each column sums to 1. Tensors outside the blocks are left out, as in the paper's figures."""
    inside = frame[frame["submodule"].notna()]
    means = inside.groupby(["seed", *by])[value].mean().unstack("seed")
    order = (
        pd.MultiIndex.from_product([list(SUBMODULES.values()), list(STAGES)]) if len(by) == 2 else SUBMODULES.values()
    )
    return (means / means.sum()).reindex(order)


def published(backbone: str) -> pd.DataFrame:
    """``parameters`` of the merged tensors of the published model, from its configuration alone: it is built by
    transformers without memory for its weights, and the backbone's own rule says which are merged."""
    import torch
    import transformers

    sizes = PUBLISHED[backbone][1]
    made = {
        "internvl": lambda: transformers.InternVLConfig(text_config={"model_type": "qwen2", **sizes}),
        "qwen2_vl": lambda: transformers.Qwen2VLConfig(text_config=sizes),
        "mistral": lambda: transformers.MistralConfig(**sizes),
    }
    with torch.device("meta"):
        model = backbones.get(backbone).auto().from_config(made[backbone]())
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    where = placed(backbones.get(backbone).merged_names(counts), backbone)
    return where.assign(parameters=where["tensor"].map(counts), seed=0)


def mlp_share(frame: pd.DataFrame) -> float:
    """The share of Gate, Up and Down in the parameters of the seven submodules."""
    return float(shares(frame, "parameters", ["submodule"]).loc[list(MLP)].sum().iloc[0])


def mlp_shares(shapes: Mapping[str, pd.DataFrame], frames: Mapping[str, pd.DataFrame]) -> str:
    """:func:`mlp_share` of the published shapes and of the models here, as a Markdown table."""
    lines = []
    for backbone, shape in shapes.items():
        there, here = mlp_share(shape), mlp_share(frames[backbone])
        kinds = shape.groupby("submodule")["parameters"].first()
        line = [
            str(len(shape)),
            f"{100 * there:.1f} %",
            f"{100 * here:.1f} %",
            f"{kinds['Gate'] / kinds['K']:.0f} times",
        ]
        lines.append([PUBLISHED[backbone][0], *line])
    heads = ["published model", "merged tensors", "share of the MLP", "in the model here", "Gate / K, published"]
    return markdown(heads, lines)


def markdown(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table, in whose cells a bar is a bar."""
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


# ---------------------------------------------------------------------------------------------------------- the figures
def figure3(frames: Mapping[str, pd.DataFrame], shapes: Mapping[str, pd.DataFrame]) -> Figure:
    """Figure 3: by submodule (a) the share of parameters, of the published shapes too, (b) of coefficients |α|."""
    made, (left, right) = plt.subplots(1, 2, figsize=(style.WIDTH, 3.4), sharex=True)
    width = 0.8 / len(frames)
    for i, (backbone, frame) in enumerate(frames.items()):
        at = np.arange(len(SUBMODULES)) + (i - (len(frames) - 1) / 2) * width
        colour, title = COLOURS[i], TITLES.get(backbone, backbone)
        left.bar(at, shares(frame, "parameters", ["submodule"]).iloc[:, 0], width, color=colour, label=title)
        if backbone in shapes:
            there = shares(shapes[backbone], "parameters", ["submodule"]).iloc[:, 0]
            left.plot(at, there, "D", color="black", mfc="white", ms=4, label="published shape" if i == 0 else None)
        _bars(right, at, shares(frame, "coefficient", ["submodule"]), width, colour)
    right.axhline(1 / len(SUBMODULES), color=style.GREY, lw=1, ls="--")
    right.set_xticks(range(len(SUBMODULES)), list(SUBMODULES.values()))
    left.set(title="(a) parameters", ylabel="share")
    right.set(title="(b) learned coefficients |α| (dashed: all alike)")
    left.legend(loc="upper left")
    return made


def by_stage(frames: Mapping[str, pd.DataFrame], value: str, label: str) -> Figure:
    """Shares of ``value`` by submodule and stage, a panel a backbone: the form of Figures 4 and 5."""
    made, axes = plt.subplots(1, len(frames), figsize=(style.WIDTH, 3.4), sharey=True, squeeze=False)
    at = np.arange(len(SUBMODULES))
    for axis, (backbone, frame) in zip(axes[0], frames.items()):
        found = shares(frame, value, ["submodule", "stage"])
        for i, (stage, colour) in enumerate(stage_colours().items()):
            _bars(axis, at + (i - 1) * 0.27, found.xs(stage, level=1), 0.27, colour, stage)
        axis.set_xticks(range(len(SUBMODULES)), list(SUBMODULES.values()), rotation=90)
        axis.set_title(TITLES.get(backbone, backbone))
    axes[0][0].set_ylabel(label)
    handles = axes[0][0].get_legend_handles_labels()
    made.legend(*handles, loc="outside lower center", ncols=3, title="third of the depth", title_fontsize=9)
    return made


def stage_colours() -> dict[str, tuple]:
    """A colour for each third of the depth, from light to dark."""
    return dict(zip(STAGES, map(tuple, plt.get_cmap(style.SEQUENTIAL)([0.85, 0.5, 0.1]))))


def figure4(frames: Mapping[str, pd.DataFrame]) -> Figure:
    """Figure 4: importance by submodule and stage."""
    return by_stage(frames, "importance", "share of importance")


def figure5(frames: Mapping[str, pd.DataFrame]) -> Figure:
    """Figure 5: learned coefficients |α| by submodule and stage."""
    return by_stage(frames, "coefficient", "share of |α|")


def _bars(axis, at: np.ndarray, found: pd.DataFrame, width: float, colour, label: str | None = None) -> None:
    """Bars at the mean over seeds, with a line from the least to the largest seed where there are several."""
    mean = found.mean(axis=1).to_numpy()
    reach = np.stack([mean - found.min(axis=1), found.max(axis=1) - mean]) if found.shape[1] > 1 else None
    axis.bar(at, mean, width, yerr=reach, color=colour, ecolor="0.2", error_kw={"lw": 1}, label=label)
