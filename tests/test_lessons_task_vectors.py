"""Notebook 01's numbers against formulas in numpy and plain loops; its cells and solutions run, with few questions."""

import json
import os
from pathlib import Path

import lesson_notebook
import matplotlib as mpl
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch

import emkit
from emkit.coefficients import Coefficients
from emkit.errors import UserError
from eval.lessons import landscape, landscape_figures, matrices, probe, task_vector_figures, task_vectors

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "01-task-vectors.ipynb"


@pytest.fixture
def toy():
    """A base and two experts of two matrices, and each τ as one numpy vector."""
    draw = np.random.default_rng(0)
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 1)]
    base = {name: torch.tensor(draw.normal(size=(4, 3)), dtype=torch.float32) for name in names}
    taus = {k: {name: torch.tensor(draw.normal(size=(4, 3)), dtype=torch.float32) for name in names} for k in "ab"}
    experts = emkit.Experts(base, {k: {name: base[name] + tau[name] for name in names} for k, tau in taus.items()})
    flat = {k: np.concatenate([tau[name].numpy().ravel() for name in names]) for k, tau in taus.items()}
    return base, taus, experts.vectors, flat


def test_sizes_angles_and_what_the_sum_contains_are_those_of_the_long_vectors(toy):
    base, taus, vectors, flat = toy
    sizes = task_vectors.sizes(vectors)
    one = sizes[(sizes["expert"] == "b") & sizes["tensor"].str.contains("1")].iloc[0]
    name = one["tensor"]
    assert one["relative"] == pytest.approx(
        np.linalg.norm(taus["b"][name].numpy()) / np.linalg.norm(base[name].numpy()), rel=1e-5
    )
    long_base = np.concatenate([tensor.numpy().ravel() for tensor in base.values()])
    for expert, relative in task_vectors.whole(sizes).items():
        assert relative == pytest.approx(np.linalg.norm(flat[expert]) / np.linalg.norm(long_base), rel=1e-5)
    products = task_vectors.products(vectors)
    a, b = flat["a"], flat["b"]
    cosine = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    np.testing.assert_allclose(task_vectors.cosines(products), [[1, cosine], [cosine, 1]], rtol=1e-5)
    assert task_vectors.contained(products)["b"] == pytest.approx((a + b) @ b / (b @ b), rel=1e-5)
    assert task_vectors.chance(vectors) == pytest.approx(1 / np.sqrt(len(a)))
    assert f"{cosine:.2f}" in task_vectors.say_cosines(task_vectors.cosines(products), 0.2)


def test_a_changed_task_vector_is_added_to_the_base_and_a_shuffled_one_has_the_same_entries(toy):
    base, taus, vectors, _ = toy
    name = vectors.names[0]
    changed = task_vectors.Changed(vectors, lambda tau: 2 * tau[1] - tau[0])
    torch.testing.assert_close(changed[name], base[name] + 2 * taus["b"][name] - taus["a"][name])
    tau = torch.arange(12.0).reshape(3, 4)
    other = task_vectors.shuffled(tau, seed=1)
    assert other.shape == tau.shape and not torch.equal(other, tau)
    assert torch.equal(other.flatten().sort().values, tau.flatten())
    assert torch.equal(other, task_vectors.shuffled(tau, seed=1))


class Bowl:
    """A model whose loss on a task is 1 + (α_a − x)² + (α_b − y)², with (x, y) the task's place: its first answer."""

    def set(self, merge):
        one = merge if isinstance(merge, dict) else dict.fromkeys("ab", merge)
        self.place = np.array([one.get("a", 0.0), one.get("b", 0.0)])
        return self

    def losses(self, questions, answers, images):
        return [torch.tensor([1 + ((self.place - np.array(json.loads(answer))) ** 2).sum()]) for answer in answers]

    def ask(self, *questions, images, max_new_tokens):
        return ["" for _ in questions]


def asked(place: str) -> list[probe.Question]:
    return [probe.Question("?", None, place, "x", bool)]


TASKS = {"a": asked("[1, 0]"), "b": asked("[0, 1]")}


def test_walks_planes_and_what_is_left_of_the_way():
    live = Bowl()
    walk = landscape.walk(live, "a", TASKS, landscape.steps(-0.5, 1.5, 0.25))
    assert set(np.round(walk["alpha"], 9)) >= {-0.5, 0.0, 1.0, 1.5} and len(walk) == 2 * 9
    found = walk[(walk["task"] == "b") & (walk["alpha"] == 0.5)].iloc[0]
    assert found["loss"] == pytest.approx(1 + 0.5**2 + 1) and found["accuracy"] == 0
    said = landscape.say_walk(walk, "a")
    assert "falls all the way" in said and "(2.000 → 1.000)" in said and "brings 75 %" in said and "No step" in said
    ends = landscape.ends(live, TASKS)
    assert ends.loc["a"].tolist() == [2.0, 1.0] and list(ends.columns) == ["base", "expert"]
    plane = landscape.plane(live, ("a", "b"), TASKS, [0.0, 0.5, 1.0])
    assert len(plane) == 9
    row = plane[(plane["first"] == 0.5) & (plane["second"] == 1.0)].iloc[0]
    assert row["a"] == pytest.approx(1 + 0.25 + 1) and row["b"] == pytest.approx(1.25)
    left = landscape.left(plane, ends).loc[row.name]
    assert left.tolist() == pytest.approx([1.25, 0.25, 0.75])
    none = landscape.left(plane, ends.assign(expert=[1.0, 3.0]))  # an expert that is no better than the base
    assert none["b"].isna().all() and none["mean"].equals(none["a"])
    points = landscape.points(live, ("a", "b"), {"a": {"a": 1.0}, "b": {"b": 1.0}, "half": {"a": 0.5, "b": 0.5}}, TASKS)
    assert points.loc["half"].tolist() == pytest.approx([0.5, 0.5, 1.5, 1.5])
    said = landscape.say_plane(plane, points, ends, ("a", "b"))
    assert "a alone leaves 100 %" in said and "One λ for both leaves 50 % at best (of this grid, at λ = 0.5)" in said
    assert len(landscape_figures.plane(plane, points, ends, ("a", "b")).axes) == 3
    nowhere = ends.assign(expert=[3.0, 3.0])
    assert "Neither expert" in landscape.say_plane(plane, points, nowhere, ("a", "b"))
    assert len(landscape_figures.plane(plane, points, nowhere, ("a", "b")).axes) == 3
    assert len(landscape_figures.walk(walk, "a").axes) == 2


def test_a_point_off_the_plane_lies_where_its_coefficients_are_on_average():
    learned = Coefficients(("b", "a"), {"x": np.array([[0.2], [1.0]]), "y": np.array([[0.4, 0.8], [0.0, 0.0]])})
    assert landscape.means(learned) == pytest.approx({"b": (0.2 + 0.6) / 2, "a": 0.5})
    points = pd.DataFrame({"a": [1.2, 1.5], "b": [1.2, 1.5]}, ["fit", "mean"])
    ends = pd.DataFrame({"base": [2.0, 2.0], "expert": [1.0, 1.0]}, ["a", "b"])
    said = landscape.say_off_plane(points, ends, "fit", "mean")
    assert said.startswith("fit leaves 20 % of the way, less than the 50 % of mean")
    assert landscape.say_off_plane(points.drop("fit"), ends, "fit", "mean") == ""


def test_signs_are_counted_place_by_place():
    taus = torch.tensor([[[4.0, 3.0], [0.1, -0.2]], [[-5.0, 0.1], [0.2, 6.0]], [[0.3, 7.0], [0.1, -8.0]]])
    every = matrices.signs(taus, 1.0)  # places: + − +, + + +, + + +, − + −
    assert every.loc[3].tolist() == [1.0, 0.5] and every.loc[[0, 1, 2]].to_numpy().sum() == 0
    half = matrices.signs(taus, 0.25)  # 2 of 4 stay: at and above the threshold
    kept = (np.abs(taus.numpy()) >= np.sort(np.abs(taus.numpy()).reshape(3, 4))[:, 2].reshape(3, 1, 1)) * taus.numpy()
    count, both = (kept != 0).sum(0), (kept > 0).any(0) & (kept < 0).any(0)
    for n in range(4):
        assert half.loc[n].tolist() == [(count == n).mean(), (both & (count == n)).mean()]
    assert "both signs occur in 50 % of the places" in matrices.say_signs(half, every) and "75 %" in matrices.say_signs(
        half, every
    )


def test_merged_matrices_are_described_by_their_formulas():
    generator = torch.Generator().manual_seed(0)
    taus = torch.randn(3, 6, 5, generator=generator)
    made = {"sum": taus.sum(0), "M": torch.randn(6, 5, generator=generator), "eye": torch.eye(6, 5)}
    found = matrices.described(made, taus)
    assert found.loc["sum", ["size", "entries", "interference"]].tolist() == pytest.approx([1, 1, 1])
    assert found.loc["eye", "rank"] == pytest.approx(5) and found.loc["eye", "entries"] == pytest.approx(5 / 30)
    m, t = made["M"].double().numpy(), taus.double().numpy()
    direct = [
        sum(np.linalg.norm((x - tau) @ tau.T) ** 2 / np.linalg.norm(tau) ** 2 for tau in t) for x in (m, t.sum(0))
    ]
    assert found.loc["M", "interference"] == pytest.approx(direct[0] / direct[1], rel=1e-4)
    shares = [(m * tau).sum() / (tau * tau).sum() for tau in t]
    assert found.loc["M", ["smallest share", "largest share"]].tolist() == pytest.approx([min(shares), max(shares)])
    p = np.linalg.svd(m, compute_uv=False)
    p /= p.sum()
    assert found.loc["M", "rank"] == pytest.approx(np.exp(-(p * np.log(p)).sum()))


def test_a_pair_and_a_matrix_are_chosen_or_named(monkeypatch):
    monkeypatch.chdir(NOTEBOOK.parents[1])
    zoo = probe.open_zoo("mini", "mistral")
    assert task_vectors.pair(zoo) == ("Math", "Code") and task_vectors.pair(zoo, "Chat") == ("Chat", "Code")
    for wrong in (("Chet", ""), ("Code", ""), ("", "Math")):
        with pytest.raises(UserError, match=r"Chat|named twice"):
            task_vectors.pair(zoo, *wrong)
    name = task_vectors.matrix(zoo)
    rows, columns = zoo.experts.vectors.base.info(name).shape
    assert rows == columns and task_vectors.matrix(zoo, name) == name
    with pytest.raises(UserError, match="is no merged matrix"):
        task_vectors.matrix(zoo, "model.embed_tokens.weight")
    merges = landscape.merges(zoo, 0.25, ("task_arithmetic", "ties", "wudi"))
    assert merges["task_arithmetic"].coefficients.values[name].tolist() == [[0.25]] * 3
    assert merges["ties"].job.context.scale == 1.0 and merges["wudi"].options["lr"] == 3e-4  # the profile's
    assert len(task_vector_figures.size_maps(task_vectors.sizes(zoo.experts.vectors)).axes) >= 4


@pytest.fixture(scope="module")
def ran():
    """What the notebook's cells leave behind, run as they stand, but with few questions and steps."""
    few = {"questions": 4, "beside": "", "fit_steps": 1}
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    here, found = os.getcwd(), {}
    with mpl.rc_context({"backend": "agg", "figure.max_open_warning": 0}):
        for cell in (cell for cell in cells if cell.cell_type == "code"):
            exec(compile(cell.source, NOTEBOOK.name, "exec"), found)
            if "parameters" in cell.metadata.get("tags", []):
                found.update(few)
        yield found
    os.chdir(here)


def test_the_notebook_runs_and_its_solutions_answer_the_exercises(ran):
    first, second, third = lesson_notebook.solutions("01-task-vectors")
    exec(first, ran)
    own = ran["control"][ran["pair"][0]]
    assert own["expert"] < own["base"] and own["expert"] < own["shuffled"]
    exec(second, ran)
    assert list(ran["gain"].index) == ["all blocks", "block 0", "block 1", "block 2", "block 3"]
    assert ran["gain"]["all blocks"] == pytest.approx(own["base"] - own["expert"], rel=1e-4)
    exec(third, ran)
    assert ran["kept"]["p = 0"] == pytest.approx(own["expert"], rel=1e-4) and ran["kept"]["p = 0.99"] > own["expert"]


def test_the_notebook_keeps_the_rules_of_the_house():
    lesson_notebook.check("01-task-vectors")
