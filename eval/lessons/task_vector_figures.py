"""Pictures of task vectors: their entries, their sizes by block and kind of tensor, and the angles between them."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from emkit import pictures
from emkit.pictures import COLOURS, by_block
from emkit.task_vectors import TaskVectors
from eval import style


def entries(vectors: TaskVectors, name: str) -> Figure:
    """How the entries of θ_base and of every τ_k are distributed in one tensor, as shares of all entries."""
    base, tau = vectors.base.read(name).float().flatten().numpy(), vectors.tau(name).flatten(1).numpy()
    low, high = np.quantile(base, [0.002, 0.998])
    edges = np.linspace(low, high, 80)
    figure, axis = plt.subplots(figsize=(style.WIDTH, 2.8))
    axis.hist(base, edges, weights=np.full(len(base), 100 / len(base)), color="0.82", label="θ_base")
    for expert, row, colour in zip(vectors.experts, tau, COLOURS):
        weights = np.full(len(row), 100 / len(row))
        axis.hist(row, edges, weights=weights, histtype="step", linewidth=1.5, color=colour, label=f"τ of {expert}")
    axis.set(xlabel="value of an entry", ylabel="% of the entries", title=name)
    axis.legend()
    return figure


def size_maps(frame: pd.DataFrame) -> Figure:
    """‖τ_k‖ / ‖θ_base‖ of every merged tensor from :func:`eval.lessons.task_vectors.sizes`: a map an expert."""
    experts = list(frame["expert"].unique())
    of = {name: part.set_index("tensor")["relative"] for name, part in frame.groupby("expert")}
    maps = [by_block(of[expert].to_dict()) for expert in experts]
    rows, kinds, _ = maps[0]
    return pictures.maps(experts, rows, kinds, np.stack([cells for _, _, cells in maps]), "‖τ‖ / ‖θ_base‖")


def cosine_maps(found: Mapping[str, pd.DataFrame]) -> Figure:
    """K × K maps of cosines side by side, each with its numbers; colours from −1 to 1."""
    figure, axes = plt.subplots(1, len(found), figsize=(style.WIDTH, 3.4), squeeze=False)
    for axis, (title, cosines) in zip(axes[0], found.items()):
        image = axis.imshow(cosines, cmap=style.DIVERGING, vmin=-1, vmax=1)
        for i, row in enumerate(cosines.to_numpy()):
            for j, value in enumerate(row):
                dark = abs(value) > 0.6
                axis.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=9, color="w" if dark else "k")
        axis.set_xticks(range(len(cosines)), cosines.columns, rotation=45, ha="right")
        axis.set_yticks(range(len(cosines)), cosines.index)
        axis.set_title(title)
        axis.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label="cosine", shrink=0.85)
    return figure
