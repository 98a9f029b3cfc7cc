"""Figures of the notebook on Expert Merging: where a merge and an expert differ, how a fit moves, what a sweep does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from emkit.alignment import objectives
from emkit.pictures import COLOURS
from emkit.results import History
from eval import style
from eval.lessons.alignment import Seen

HIDDEN, LOGIT = "hidden states (Eq. 1)", "logits (Eq. 2), nats"
LONGEST = 40  # tokens of an answer that are drawn


def along(part: Seen, answer: int = 0) -> Figure:
    """Eq. 1 and Eq. 2 at every token of one of the expert's answers, as bars under which the tokens stand."""
    here = np.flatnonzero(part.answer == answer)[:LONGEST]
    hidden = objectives.hidden_alignment(part.merged_hidden, part.expert_hidden)[here]
    logit = objectives.logit_alignment(part.merged_final, part.head, part.expert_final, part.expert_head)[here]
    figure, panels = plt.subplots(2, 1, figsize=(style.WIDTH, 4.2), sharex=True)
    for axis, values, title, colour in zip(panels, (hidden, logit), (HIDDEN, LOGIT), COLOURS):
        axis.bar(range(len(here)), values.numpy(), color=colour)
        axis.set_title(title)
    panels[1].set_xticks(range(len(here)), [_visible(part.tokens[i]) for i in here], rotation=90)
    panels[1].set_xlabel("the token that is predicted there")
    return figure


def worst(part: Seen, answer: int = 0) -> int:
    """The position of an answer where Eq. 2 is largest."""
    here = np.flatnonzero(part.answer == answer)
    logit = objectives.logit_alignment(part.merged_final, part.head, part.expert_final, part.expert_head)
    return int(here[int(logit[torch.from_numpy(here)].argmax())])


def next_token(part: Seen, position: int, temperatures: Sequence[float] = (1.0, 2.0), n: int = 6) -> Figure:
    """The expert's and the merge's next-token distributions at one position, over the expert's likeliest tokens."""
    figure, panels = plt.subplots(1, len(temperatures), figsize=(style.WIDTH, 2.9), sharey=True)
    top = part.expert_logits[position].topk(n).indices
    names = [_visible(part.vocabulary.decode([int(token)])) for token in top]
    for axis, temperature in zip(np.atleast_1d(panels), temperatures, strict=True):
        for i, (who, z) in enumerate((("expert", part.expert_logits), ("merge", part.merged_logits))):
            p = (z[position] / temperature).softmax(-1)[top]
            axis.barh(np.arange(n) + 0.4 * i - 0.2, p.numpy(), 0.4, color=COLOURS[i], label=who)
        axis.set_title(f"softmax(z / T), T = {temperature:g}")
        axis.set_xlim(left=0)
        axis.set_xlabel("probability")
    axes = np.atleast_1d(panels)
    axes[0].set_yticks(range(n), names)
    axes[0].invert_yaxis()
    axes[-1].legend()
    return figure


def course(history: History, experts: Sequence[str], epoch: int = 1) -> Figure:
    """A fit: above each task's two losses over the steps, below the coefficients of each expert's tensors.

    Each step sees other samples, so single steps are drawn faintly and the mean over an ``epoch`` of steps boldly.
    """
    entries = history.stages[0]["history"]
    figure = plt.figure(figsize=(style.WIDTH, 5.4))
    top, bottom = figure.subfigures(2, 1)
    for axis, term, title in zip(top.subplots(1, 2), ("hidden", "logit"), (HIDDEN, LOGIT)):
        for colour, task in zip(COLOURS, experts):
            values = [entry["tasks"][task][term] for entry in entries]
            axis.plot(values, color=colour, alpha=0.25)
            axis.plot(*_running(values, epoch), color=colour, linewidth=2, label=task)
        axis.set_title(title)
        axis.set_xlabel("step")
        axis.set_ylim(bottom=0)
    axis.legend()
    alpha = np.array([entry["alpha"] for entry in entries])  # [steps, tensors · K], tensor by tensor
    panels = bottom.subplots(1, len(experts), sharey=True, squeeze=False)[0]
    for k, (axis, expert) in enumerate(zip(panels, experts, strict=True)):
        own = alpha[:, k :: len(experts)]
        axis.plot(own, color=COLOURS[k % len(COLOURS)], alpha=0.25, linewidth=0.8)
        axis.plot(own.mean(1), color=COLOURS[k % len(COLOURS)], linewidth=2.5)
        axis.axhline(alpha[0, k], color=style.GREY, linewidth=1, linestyle="--")
        axis.set_title(f"α, {expert} expert")
        axis.set_xlabel("step")
    return figure


def terms(frame: pd.DataFrame) -> Figure:
    """What fits with other terms reach: a panel a measure, a line a fit, a dot a task; black is the mean over tasks."""
    labels = {"hidden": "Eq. 1, unseen samples", "logit": "Eq. 2, unseen samples"}
    labels |= {"loss": "−ln p of gold answers", "accuracy": "accuracy"}
    merges, tasks = list(dict.fromkeys(frame["merge"])), list(dict.fromkeys(frame["task"]))
    figure, panels = plt.subplots(1, 4, figsize=(style.WIDTH, 0.42 * len(merges) + 1.6), sharey=True)
    for axis, (measure, title) in zip(panels, labels.items()):
        for colour, task in zip(COLOURS, tasks):
            own = frame[frame["task"] == task].set_index("merge")[measure]
            axis.plot(own[merges], range(len(merges)), "o", color=colour, alpha=0.8, label=task)
        mean = frame.groupby("merge")[measure].mean()[merges]
        axis.plot(mean, range(len(merges)), "|", color="black", markersize=16, markeredgewidth=2, label="mean")
        axis.set_title(title)
        axis.grid(axis="y", color="0.9")
        axis.set_xlim(left=0)
    panels[0].set_yticks(range(len(merges)), merges)
    panels[0].invert_yaxis()
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(tasks) + 1)
    return figure


def trade_off(frame: pd.DataFrame, task: str, other: str, what: str = "β", start: pd.DataFrame | None = None) -> Figure:
    """Two tasks' KL on unseen samples against each other, a point a fit; ``start`` is where all fits began."""
    pivot = frame.pivot(index="value", columns="task", values="logit")
    figure, axis = plt.subplots(figsize=(style.WIDTH, 4.2))
    axis.plot(pivot[other], pivot[task], "o-", color=COLOURS[0])
    for i, (value, x, y) in enumerate(zip(pivot.index, pivot[other], pivot[task], strict=True)):
        place: dict = {"xytext": (-8, -14), "ha": "right"} if i % 2 else {"xytext": (8, 4)}
        axis.annotate(f"{what} = {value:g}", (x, y), textcoords="offset points", fontsize=9, **place)
    if start is not None:
        x, y = start["logit"][other], start["logit"][task]
        axis.plot(x, y, "X", color=COLOURS[1], markersize=9)
        axis.annotate("start: α = ᾱ", (x, y), xytext=(-8, 6), textcoords="offset points", fontsize=9, ha="right")
    axis.set_xlabel(f"Eq. 2 of {other}, unseen samples (nats)")
    axis.set_ylabel(f"Eq. 2 of {task}, unseen samples (nats)")
    axis.margins(0.12)
    return figure


def sweeps(frames: Mapping[str, pd.DataFrame], x: str, start: pd.DataFrame) -> Figure:
    """Sweeps over ``x``, a line each: Eq. 1 and Eq. 2 on unseen samples as means over tasks, and how far α moved."""
    measures = {"hidden": HIDDEN, "logit": LOGIT, "moved": "mean |α − ᾱ|"}
    figure, panels = plt.subplots(1, 3, figsize=(style.WIDTH, 3.0))
    for axis, (measure, title) in zip(panels, measures.items()):
        for i, (name, frame) in enumerate(frames.items()):
            mean = frame.groupby("value")[measure].mean()
            axis.plot(range(len(mean)), mean, "o-", color=COLOURS[i], label=name)
            axis.set_xticks(range(len(mean)), [f"{value:g}" for value in mean.index])
        rest = 0.0 if measure == "moved" else start[measure].mean()
        axis.axhline(rest, color=style.GREY, linestyle="--", linewidth=1)
        axis.set_title(title)
        axis.set_xlabel(x)
    if len(frames) > 1:
        panels[-1].legend()
    return figure


def seen_and_unseen(frame: pd.DataFrame, start: pd.DataFrame) -> Figure:
    """Eq. 1 and 2 (means over tasks) against N: on the N samples that were fitted, and on those that no fit has seen.

    ``frame``: a row a value, task and ``samples`` ("fitted" or "unseen").
    """
    figure, panels = plt.subplots(1, 2, figsize=(style.WIDTH, 3.2))
    for axis, measure, title in zip(panels, ("hidden", "logit"), (HIDDEN, LOGIT)):
        for colour, (name, part) in zip(COLOURS, frame.groupby("samples", sort=False)):
            mean = part.groupby("value")[measure].mean()
            axis.plot(range(len(mean)), mean, "o-", color=colour, label=f"{name} samples")
            axis.set_xticks(range(len(mean)), [f"{value:g}" for value in mean.index])
        axis.axhline(start[measure].mean(), color=style.GREY, linestyle="--", linewidth=1, label="start, unseen")
        axis.set_title(title)
        axis.set_xlabel("N, samples of each task")
        axis.set_ylim(0, 1.06 * axis.get_ylim()[1])
    panels[0].legend()
    return figure


def chain_rule(frame: pd.DataFrame) -> Figure:
    """∂loss/∂α by the chain rule against the one found by nudging α, a point a coefficient."""
    figure, axis = plt.subplots(figsize=(style.WIDTH, 3.4))
    for colour, (expert, part) in zip(COLOURS, frame.groupby("expert", sort=False)):
        axis.plot(part["nudged"], part["chain rule"], "o", color=colour, label=f"{expert} expert", markersize=7)
    axis.axline((0, 0), slope=1, color=style.GREY, linewidth=1)
    axis.set_xlabel("slope found by nudging α up and down")
    axis.set_ylabel("⟨∂loss/∂W, τ⟩")
    axis.legend()
    return figure


def _running(values: Sequence[float], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Places and means of windows of ``width`` values."""
    width = min(width, len(values))
    means = np.convolve(values, np.full(width, 1 / width), mode="valid")
    return np.arange(len(means)) + (width - 1) / 2, means


def _visible(token: str) -> str:
    """A token with its white space made visible; no mathematics."""
    return token.replace(" ", "␣").replace("\n", "⏎").replace("$", r"\$")
