"""Figures 3 to 5 as files: the shares behind them add up, and nothing is drawn that was not learned."""

import itertools

import numpy as np
import pandas as pd
import pytest
from small_plan import ROOT

from emkit.errors import UserError
from eval.lessons import figure_files
from eval.lessons.importance import STAGES, SUBMODULES


def frame(seeds: int, seed: int = 0) -> pd.DataFrame:
    """Merged tensors of three blocks with random values, and one outside the blocks."""
    random = np.random.default_rng(seed)
    lines = [
        {"tensor": f"{block}.{kind}", "block": block, "submodule": kind, "stage": stage, "seed": number}
        | dict.fromkeys(("parameters", "coefficient", "importance"), 0.0)
        | {name: random.uniform(0.1, 1) for name in ("parameters", "coefficient", "importance")}
        for number in range(seeds)
        for (block, stage), kind in itertools.product(enumerate(STAGES), SUBMODULES.values())
    ]
    outside = {"tensor": "projector", "block": -1, "submodule": None, "stage": None, "seed": 0, "parameters": 99.0}
    return pd.DataFrame([*lines, outside | {"coefficient": 9.0, "importance": 9.0}])


def test_shares_of_every_kind_add_up_to_one_and_leave_out_what_is_in_no_block():
    frames = {"internvl": frame(3), "mistral": frame(2, seed=1)}
    found = figure_files.table(frames, {name: frame(1, seed=7) for name in frames})
    for by, group in found.groupby(["backbone", "of", found["stage"] == "all"]):
        assert group["mean"].sum() == pytest.approx(1), by
        assert (group["least"] <= group["mean"] + 1e-12).all() and (group["mean"] <= group["largest"] + 1e-12).all()
    assert len(found) == 2 * 4 * (7 + 21)
    own = (
        frames["internvl"][lambda f: (f["seed"] == 0) & f["submodule"].notna()]
        .groupby("submodule")["importance"]
        .mean()
    )
    seeds = found.query("backbone == 'internvl' and of == 'importance' and stage == 'all'").set_index("submodule")
    share = (own / own.sum()).reindex(seeds.index)
    assert ((seeds["least"] - 1e-12 <= share) & (share <= seeds["largest"] + 1e-12)).all()


def test_figures_of_nothing_learned_name_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError, match=r"nothing has been learned of Table 1's models: run `.*reproduce table1 "):
        figure_files.write("mini", str(tmp_path))
    assert not list(tmp_path.rglob("*.png"))
