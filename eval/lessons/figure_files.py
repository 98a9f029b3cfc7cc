"""Figures 3, 4 and 5 as files: ``make reproduce-figures``, from what the runs of Tables 1 to 3 learned."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from emkit.errors import UserError
from emkit.files import atomic_write
from eval import figures, style
from eval.lessons import importance, probe, short_fits

SHARES = ("parameters", "coefficient", "importance")


def write(profile: str, results: str) -> list[Path]:
    """Draw the figures into ``results/<profile>/figures``, the shares behind them beside as CSV; returns the paths.

    ``UserError`` where a table that they rest on has not been run.
    """
    zoos = {name: probe.open_zoo(profile, name, results) for name in importance.TITLES}
    learned = {name: short_fits.learned(zoo, steps=0) for name, zoo in zoos.items()}
    for name, each in learned.items():
        if each.flat:
            plan = zoos[name].plan
            raise UserError(f"nothing has been learned of {plan.table.title}'s models: run `{plan.command}` first")
    frames = {name: importance.layers(learned[name], zoo.experts.vectors, name) for name, zoo in zoos.items()}
    shapes = {name: importance.published(name) for name in zoos}
    folder = Path(results) / next(iter(zoos.values())).profile.name / "figures"
    with plt.rc_context(style.SETTINGS):
        drawn = {
            "figure3.png": importance.figure3(frames, shapes),
            "figure4.png": importance.figure4(frames),
            "figure5.png": importance.figure5(frames),
        }
    for name, figure in drawn.items():
        figures.save(figure, folder / name)
    with atomic_write(folder / "shares.csv") as part:
        table(frames, shapes).to_csv(part, index=False, float_format="%.4f", lineterminator="\n")
    return [folder / name for name in (*drawn, "shares.csv")]


def table(frames: dict[str, pd.DataFrame], shapes: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The shares behind the figures: backbone, what of, submodule, stage (``all`` for the whole depth), the mean over
    seeds and its least and largest; ``published parameters`` are those of the published model's shape."""
    lines = []
    for backbone, frame in frames.items():
        kinds = [(value, frame, value) for value in SHARES] + [("published parameters", shapes[backbone], "parameters")]
        for name, each, value in kinds:
            for by in (["submodule"], ["submodule", "stage"]):
                for key, row in importance.shares(each, value, by).iterrows():
                    submodule, stage = (key, "all") if isinstance(key, str) else key
                    ends = {"mean": row.mean(), "least": row.min(), "largest": row.max()}
                    lines.append({"backbone": backbone, "of": name, "submodule": submodule, "stage": stage, **ends})
    return pd.DataFrame(lines)
