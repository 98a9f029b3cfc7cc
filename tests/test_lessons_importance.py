"""Figures 3 to 5, budgets and lesions: shares worked by hand, shapes from their configurations, and both notebooks."""

import math
import re
from pathlib import Path

import matplotlib
import nbformat
import numpy as np
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell

from emkit.alignment.importance import layer_importance
from emkit.coefficients import Coefficients
from emkit.errors import UserError
from eval.lessons import chunks, importance, importance_readings, lesions, probe, short_fits

matplotlib.use("agg")
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return probe.open_zoo("mini", "mistral", tmp_path_factory.mktemp("results"))


def random_coefficients(vectors, seed=0) -> Coefficients:
    rng = np.random.default_rng(seed)
    return Coefficients(vectors.experts, {name: rng.normal(size=(len(vectors.experts), 1)) for name in vectors.names})


# ---------------------------------------------------------------------------------------------------------- Figures 3–5
@pytest.mark.parametrize("blocks, sizes", [(4, (1, 2, 1)), (5, (2, 1, 2)), (24, (8, 8, 8)), (28, (9, 10, 9))])
def test_stages_are_thirds_of_the_depth_and_symmetric(blocks, sizes):
    names = [f"model.layers.{b}.mlp.up_proj.weight" for b in range(blocks)]
    found = importance.placed(names, "mistral")
    assert tuple(found["stage"].value_counts()[list(importance.STAGES)]) == sizes
    assert list(found["stage"]) == sorted(found["stage"], key=importance.STAGES.index)


def test_a_projector_is_in_no_submodule():
    names = ["multi_modal_projector.linear_1.weight", "language_model.model.layers.0.self_attn.q_proj.weight"]
    assert list(importance.placed(names, "internvl")["submodule"].fillna("none")) == ["none", "Q"]


@pytest.mark.parametrize("backbone, tensors", [("internvl", 24 * 7 + 3), ("qwen2_vl", 28 * 7), ("mistral", 32 * 7)])
def test_the_published_shapes_have_the_papers_share_of_mlp(backbone, tensors):
    found = importance.published(backbone)
    assert len(found) == tensors
    d, _, heads, kv, mlp = importance.PUBLISHED[backbone][1].values()
    attention, gated = 2 * d * d + 2 * d * (d // heads * kv), 3 * d * mlp
    assert math.isclose(importance.mlp_share(found), gated / (attention + gated))
    assert int(100 * importance.mlp_share(found) + 0.5) in {"mistral": (81,)}.get(backbone, (87, 88))


def block_names(blocks: int) -> list[str]:
    part = lambda kind: "self_attn" if kind[0] in "qkvo" else "mlp"  # noqa: E731
    return [f"model.layers.{b}.{part(kind)}.{kind}.weight" for b in range(blocks) for kind in importance.SUBMODULES]


def test_shares_are_means_over_a_cell_over_their_sum():
    names = block_names(4)
    frame = importance.placed(names, "mistral").assign(seed=0)
    frame["x"] = frame["block"] + 1.0 + 10.0 * (frame["submodule"] == "Up")
    by_kind = importance.shares(frame, "x", ["submodule"])[0]
    assert by_kind["Q"] == pytest.approx(2.5 / (7 * 2.5 + 10)) and by_kind["Up"] == pytest.approx(12.5 / 27.5)
    cells = importance.shares(frame, "x", ["submodule", "stage"])[0]
    # early: block 0 alone (1); middle: blocks 1 and 2 (2.5 on average); late: block 3 (4)
    total = 7 * (1 + 2.5 + 4) + 30
    assert cells["K", "early"] == pytest.approx(1 / total) and cells["K", "middle"] == pytest.approx(2.5 / total)
    assert cells["Up", "late"] == pytest.approx(14 / total) and cells.sum() == pytest.approx(1)


def test_layers_hold_the_factors_of_importance(zoo):
    vectors = zoo.experts.vectors
    seeds = {seed: random_coefficients(vectors, seed) for seed in (0, 5)}
    frame = importance.layers(short_fits.Learned(seeds, "here"), vectors, "mistral")
    assert len(frame) == 2 * len(vectors.names)
    own = frame[frame["seed"] == 5].set_index("tensor")
    name = vectors.names[9]
    tau = vectors.tau(name).numpy()
    sizes = {other: np.abs(vectors.tau(other).numpy()).mean(axis=(1, 2)) for other in vectors.names}
    assert own.loc[name, "parameters"] == tau[0].size
    assert own.loc[name, "coefficient"] == pytest.approx(np.abs(seeds[5].values[name]).mean())
    assert own.loc[name, "tau"] == pytest.approx((sizes[name] / sum(sizes.values())).mean(), rel=1e-5)
    assert own["importance"].to_dict() == layer_importance(seeds[5], vectors)


def test_simpler_measures_leave_out_their_factor(zoo):
    vectors = zoo.experts.vectors
    coefficients = random_coefficients(vectors)
    found = importance_readings.roles(coefficients, vectors, "mistral")
    n = np.array([vectors.numel(name) for name in vectors.names], dtype=float)
    alpha = np.array([np.abs(coefficients.values[name]).sum() for name in vectors.names])
    assert found[importance_readings.ALONE].to_numpy() == pytest.approx(n / n.sum())
    assert found["parameters and |α|"].to_numpy() == pytest.approx(n * alpha / (n * alpha).sum())
    constant = Coefficients.constant(vectors.names, dict.fromkeys(vectors.experts, 0.3))
    same = importance_readings.roles(constant, vectors, "mistral")
    assert same["parameters and |τ|"].to_numpy() == pytest.approx(same[importance_readings.ALL].to_numpy())
    agreed = importance_readings.agreement(same)
    assert agreed.loc["parameters and |τ|", "Spearman's ρ with I"] == pytest.approx(1)
    assert agreed.loc["parameters and |τ|", "same chunks"] == f"{len(n)} of {len(n)}"


def test_claims_are_answered_by_the_numbers():
    names = block_names(6)
    frame = importance.placed(names, "mistral").assign(seed=0, parameters=1.0)
    rank = {"K": 0.1, "V": 0.2, "Q": 1.0, "O": 0.9, "Down": 2.0, "Up": 3.0, "Gate": 4.0}
    frame["importance"] = frame["submodule"].map(rank) * (1 + frame["block"])
    frame["coefficient"] = np.where(frame["submodule"] == "K", 1.1, np.where(frame["submodule"] == "O", 0.9, 1.0))
    found = importance_readings.claims({"mistral": frame}, {})["Mistral"].tolist()
    assert found[0] == "43 % in the model here"  # 3 of 7 equal matrices
    assert [text.partition(":")[0] for text in found[1:6]] == ["yes", "yes", "yes", "no", "yes"]
    assert found[6] == "(said of InternVL)" and found[7] == "yes: K, V"
    assert found[8].startswith("yes: late above early in 7 of 7")
    # thirds of importance: blocks 1+2, 3+4, 5+6 of 21
    assert "0.14, 0.33, 0.52" in found[8]
    told = importance_readings.claimed({"mistral": frame.assign(coefficient=0.3)}, {})
    assert told.count(importance_readings.ALIKE) == 4 and "\\|α\\|" in told


# -------------------------------------------------------------------------------------------------------------- budgets
COUNTS = {"a": 3, "b": 1, "c": 0, "d": 0, "e": 1}
WEIGHT = {"a": 0.5, "b": 0.2, "c": 0.1, "d": 0.05, "e": 0.15}
SIZES = dict.fromkeys(COUNTS, 10)


def test_every_way_spends_the_same_budget():
    ways = chunks.budgets(COUNTS, WEIGHT, SIZES, draws=4)
    single = ways.pop(chunks.ONE_EACH)
    assert set(single.values()) == {1}
    assert len(ways) == 7 and all(sum(way.values()) == 5 for way in ways.values())
    assert all(list(way) == list(COUNTS) for way in ways.values())
    assert ways["evenly"] == dict.fromkeys(COUNTS, 1)
    assert ways["by its inverse"] == {"a": 0, "b": 0, "c": 1, "d": 3, "e": 1}
    dealt = [ways[f"at random {i}"] for i in (1, 2, 3, 4)]
    assert all(sorted(way.values()) == [0, 0, 1, 1, 3] for way in dealt) and any(way != dealt[0] for way in dealt[1:])


def test_an_even_spread_leaves_no_long_gap():
    found = list(chunks.uniform({str(i): 2 if i < 4 else 0 for i in range(12)}).values())
    assert found == [0, 1, 1] * 4 or (sum(found) == 8 and max(found) == 1 and "0, 0" not in str(found))


def test_too_many_chunks_for_a_small_tensor_is_one_line():
    with pytest.raises(UserError, match="too few for 3 chunks"):
        chunks.inverse(COUNTS, WEIGHT, {**SIZES, "d": 2})


def test_counts_are_eq_4_and_no_budget_below_one_survives_the_floor_of_an_even_share():
    found = chunks.counts(WEIGHT, [0.9, 1.0], [0.0, 1.0])
    assert list(found.index) == ["a", "b", "e", "c", "d"]
    assert found[0.0, 0.9].sum() == 0 and found[0.0, 1.0].tolist() == [1] * 5
    assert found[1.0, 1.0].tolist() == [2, 1, 0, 0, 0]  # shares 2.5, 1, 0.75, 0.5, 0.25


def test_a_slider_moved_draws_another_picture():
    budget, kappa, picture = chunks.slider(WEIGHT).children
    before = picture.value
    kappa.value = 3.0
    after = picture.value
    budget.value = 2.0
    assert len({before, after, picture.value}) == 3 and before[1:4] == b"PNG"


def test_names_on_axes_and_spread():
    assert chunks.short("model.layers.3.mlp.gate_proj.weight") == "3 Gate"
    assert chunks.short("multi_modal_projector.linear_1.weight") == "linear_1"
    values = {"x.1.q_proj.weight": np.array([[0.1, 0.4, 0.2], [1.0, 1.0, 0.5]]), "y": np.array([[1.0], [2.0]])}
    found = chunks.spread(Coefficients(("A", "B"), values))
    assert found["difference"].tolist() == pytest.approx([0.3, 0.5]) and set(found["tensor"]) == {"1 Q"}


def test_what_is_said_of_a_comparison():
    rows = {chunks.STAGE1: (0, 9.0), chunks.IMPORTANCE: (5, 2.0), "at random 1": (5, 3.0), "at random 2": (5, 4.0)}
    table = pd.DataFrame.from_dict(
        {
            name: {"coefficients": n, "alignment loss": x, "validation loss": 3.5, "accuracy": 40 + x}
            for name, (n, x) in rows.items()
        },
        orient="index",
    )
    first, second, third = chunks.said(table).split("\n")
    assert "2.0000, below the range" in first and "(3.0000 to 4.0000)" in first and "*by importance*" in first
    assert "within" in second and "42.0, below" in third and "highest is *Expert Merging* (49.0)" in third


# -------------------------------------------------------------------------------------------------------------- lesions
def test_a_lesion_is_the_bases_tensor_and_nothing_else(zoo):
    coefficients, name = random_coefficients(zoo.experts.vectors), zoo.experts.vectors.names[3]
    live = zoo.live.set(lesions.reset(coefficients, name))
    parameters = dict(live.model.named_parameters())
    assert (parameters[name].numpy(force=True) == zoo.experts.vectors.base.read(name).float().numpy()).all()
    other = zoo.experts.vectors.names[4]
    tau = zoo.experts.tau(other).double().numpy()
    expected = zoo.experts.vectors.base.read(other).double().numpy() + np.einsum(
        "k,kij->ij", coefficients.values[other][:, 0], tau
    )
    assert parameters[other].numpy(force=True) == pytest.approx(expected, abs=1e-5)


class Recorder:
    """Stands in for a live model; the loss below reads what it was last set to."""

    def set(self, coefficients):
        self.coefficients = coefficients
        return self


def test_damage_is_the_rise_of_the_loss():
    worth = {"a": 3.0, "b": -1.0, "c": 0.5}
    whole = Coefficients(("E",), {name: np.array([[1.0]]) for name in worth})
    loss = lambda live, half: half[0] - sum(worth[n] for n, v in live.coefficients.values.items() if v.any()) * half[0]  # noqa: E731
    live = Recorder()
    found = lesions.damage(live, whole, [1.0, 3.0], loss)
    halves = sorted(found[["half 1", "half 2"]].T.to_numpy().tolist())  # which is which is drawn by lot
    assert halves == [pytest.approx([3, -1, 0.5]), pytest.approx([9, -3, 1.5])]
    assert found[lesions.DAMAGE].tolist() == pytest.approx([6, -2, 1]) and live.coefficients is whole


def test_correlations_are_spearmans_and_intervals_hold_them():
    from scipy import stats

    rng = np.random.default_rng(0)
    hurt = rng.normal(size=30)
    frame = pd.DataFrame({name: hurt + i * rng.normal(size=30) for i, name in enumerate(lesions.PREDICTORS)})
    frame[lesions.DAMAGE] = hurt
    found = lesions.correlations(frame, resamples=500)
    assert found.loc[lesions.PREDICTORS[0], "ρ"] == pytest.approx(1)
    for name in lesions.PREDICTORS:
        rho = stats.spearmanr(frame[name], hurt).statistic
        assert found.loc[name, "ρ"] == pytest.approx(rho) and found.loc[name, "from"] <= rho <= found.loc[name, "to"]
        assert found.loc[name, "ρ of I less this"] == pytest.approx(1 - rho)
    told = lesions.verdict(frame.assign(**{"half 1": hurt, "half 2": -hurt}))
    assert (
        "**foretells the damage**" in told
        and "better than *norm of Σ α τ*" in told
        and "ρ = -1.00 with" in told
        and "Ask more" in told
    )
    assert "Ask more" not in lesions.verdict(frame.assign(**{"half 1": hurt, "half 2": hurt}))


def test_predictors_are_lengths_of_task_vectors(zoo):
    vectors = zoo.experts.vectors
    coefficients = random_coefficients(vectors)
    found = lesions.predictors(coefficients, vectors, "mistral")
    name = vectors.names[11]
    tau = vectors.tau(name).double().numpy()
    added = np.einsum("k,kij->ij", coefficients.values[name][:, 0], tau)
    assert found.loc[name, "norm of Σ α τ"] == pytest.approx(np.sqrt((added**2).sum()))
    assert found.loc[name, "norm of τ"] == pytest.approx(np.mean([np.sqrt((t**2).sum()) for t in tau]))


# ----------------------------------------------------------------------------------------------------------- short fits
def test_coefficients_are_read_where_a_table_was_run_and_say_so(zoo, tmp_path):
    mine = probe.open_zoo("mini", "mistral", tmp_path)
    kept = random_coefficients(zoo.experts.vectors)
    kept.save(tmp_path / "mini" / "mistral" / "expert_merging" / "1" / "coefficients.json")
    found = short_fits.learned(mine, steps=5)
    assert list(found.seeds) == [1] and "run of Table 3" in found.origin
    assert all((found.seeds[1].values[name] == kept.values[name]).all() for name in kept.values)


def test_without_steps_lambda_stands_in_and_says_so(zoo):
    found = short_fits.learned(zoo, steps=0, scale=0.25)
    assert found.flat and "not learned" in found.origin and "reproduce table3" in found.origin
    assert {float(v) for value in found.seeds[0].values.values() for v in value.flat} == {0.25}
    with pytest.raises(UserError, match="at least one step"):
        short_fits.ShortFit(zoo, steps=0)


# ------------------------------------------------------------------------------------------------------------ notebooks
def run_with_solutions(name: str, **given) -> dict:
    """Run a notebook's cells with these parameters, then the code of its solutions; what is then defined."""
    cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    solutions = re.findall(r"<details>.*?```python\n(.*?)```", prose, flags=re.DOTALL)
    assert len(solutions) == 3
    shell = InteractiveShell()
    for cell in [cell for cell in cells if cell.cell_type == "code"]:
        shell.run_cell(cell.source, silent=True).raise_error()
        if "parameters" in cell.metadata.get("tags", []):
            shell.user_ns.update(given)
    for solution in solutions:
        shell.run_cell(solution, silent=True).raise_error()
    return shell.user_ns


def test_notebook_03_and_its_solutions(tmp_path):
    found = run_with_solutions("03-importance", backbones="mistral", steps=2, results=str(tmp_path))
    assert found["share"] == pytest.approx(1 - 4 * 4096**2 / (4 * 4096**2 + 3 * 4096 * 14336))
    assert 0 < found["change"] < 1
    assert found["top"]["lift"].is_monotonic_decreasing and found["top"]["lift"].iloc[0] > 1
    assert "short fit" in found["learned"]["mistral"].origin


def test_notebook_04_and_its_solutions(tmp_path):
    small = {"steps": 2, "samples": 1, "draws": 2, "questions": 4}
    found = run_with_solutions("04-expert-merging-plus-plus", results=str(tmp_path), **small)
    assert found["given"].iloc[0] == 0 and found["given"].max() > 0
    twice = found["twice"]
    assert all(value.shape[1] == 2 for value in twice.values.values()) and not twice.fixed
    table = found["table"]
    assert set(table["coefficients"]) == {0, sum(found["counts"].values()), len(found["vectors"].names)}
    assert {"block", "damage"} <= set(found["frame"].columns) and math.isfinite(found["costs"])
