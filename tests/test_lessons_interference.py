"""WUDI's quadratic form as a lesson: eigenvalues against numpy, objectives against the method's own minimum."""

import numpy as np
import pytest
import torch

import emkit
from eval.lessons import interference, probe


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return probe.open_zoo("mini", "mistral", tmp_path_factory.mktemp("results"))


def test_eigenvalues_are_those_of_the_sum_of_normalised_gram_matrices(zoo):
    frame = interference.spectra(zoo.experts.vectors, "mistral")
    assert len(frame) == 28
    name = frame.index[5]
    taus = zoo.experts.vectors.tau(name).double().numpy()
    n = taus.shape[2]
    stacked = np.concatenate([np.sqrt(n) * tau / np.linalg.norm(tau) for tau in taus])
    singular = np.linalg.svd(stacked, compute_uv=False)
    found = frame.loc[name, "eigenvalues"]
    np.testing.assert_allclose(found[: len(singular)], singular[:n] ** 2, rtol=1e-8, atol=1e-9)
    assert found.mean() == pytest.approx(len(taus))  # each C_k has the mean eigenvalue 1
    assert frame.loc[name, "decades"] == pytest.approx(np.log10(singular.max() ** 2 / singular.min() ** 2), abs=0.01)


def test_decades_leave_rounding_out():
    assert interference.decades(np.array([1000.0, 1.0, 1e-20, -1e-18])) == 3


def test_the_minimum_has_the_least_of_the_objective_and_the_sum_all_of_it(zoo):
    merges = interference.ways(zoo.experts, 3e-4, (0, 30), (1.0, 1e6))
    asked = [question for task in zoo.names for question in probe.questions(zoo, task, 2)]
    frame = interference.stopped(zoo.live, merges, asked)
    assert frame.loc["Adam, 0 steps"].tolist()[:2] == pytest.approx([1, 1], abs=0.02)  # bf16 weights
    assert frame.loc["ridge, ρ = 1e+06"].tolist()[:2] == pytest.approx([1, 1], abs=0.02)
    assert frame["objective / that of Σ τ"].idxmin() == "its minimum"
    order = frame.loc[["its minimum", "Adam, 30 steps", "Adam, 0 steps"], "objective / that of Σ τ"].tolist()
    assert order == sorted(order)
    zoo.live.set(emkit.ridge(zoo.experts))
    assert frame.loc["ridge, ρ = 1", "loss (nats)"] == pytest.approx(probe.loss(zoo.live, asked))
    said = interference.verdict(frame, interference.spectra(zoo.experts.vectors, "mistral"))
    assert f"{frame.loc['its minimum', 'loss (nats)']:.2f} nats" in said


def test_what_is_left_of_the_objective_as_the_paper_writes_it():
    rng = np.random.default_rng(0)
    taus, m = rng.normal(size=(2, 3, 4)), rng.normal(size=(3, 4))

    wanted = sum(np.linalg.norm((m - tau) @ tau.T) ** 2 / np.linalg.norm(tau) ** 2 for tau in taus)
    assert interference.objective(torch.tensor(m), torch.tensor(taus)) == pytest.approx(wanted)
    assert interference.objective(torch.tensor(m), torch.zeros(1, 3, 4)) == 0
