"""The trained vector alone: the regulariser's subgradient where nothing has moved, and the schedule against torch's."""

import numpy as np
import pytest
import torch

from emkit.alignment.variable import Optimiser, Variable, authors_sign, learning_rate
from emkit.coefficients import Coefficients
from emkit.errors import UserError
from emkit.methods import check_options, get

GRID = sorted({*np.round(np.linspace(0.01, 0.99, 99), 2), *np.random.default_rng(0).uniform(0.001, 0.999, 300)})


def variable(values, parameterisation="sigmoid", anchor=None, **settings) -> Variable:
    start = Coefficients(("a",), {f"t{i}": np.array([[value]]) for i, value in enumerate(values)})
    anchor = np.array(values if anchor is None else anchor)
    settings = Optimiser(lr=0.5, steps=9, schedule="constant", **settings)
    return Variable(start, parameterisation, settings, anchor)


def step(found: Variable, number: int, gradient=0.0, clipped=False) -> None:
    found.begin(number, 3.0 * found.side())
    whole = torch.full_like(found.w, gradient)
    if clipped:
        found.descend_clipped(whole)
    else:
        found.descend(slice(0, 7), whole[:7])
        found.descend(slice(7, None), whole[7:])


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("parameterisation", ["plain", "sigmoid"])
def test_without_a_gradient_of_the_data_nothing_moves(parameterisation, name, clipped):
    found = variable(GRID, parameterisation, name=name, clip=1.0)
    start = found.w.clone()
    for number in range(5):
        step(found, number, clipped=clipped)
    assert torch.equal(found.w, start)
    assert found.alpha().numpy() == pytest.approx(np.array(GRID), abs=1e-15)


@pytest.mark.parametrize("parameterisation", ["plain", "sigmoid"])
def test_weight_decay_alone_moves_it_and_the_regulariser_then_holds_on_the_right_side(parameterisation):
    """AdamW's decay is w (1 − lr · 0.01) in the first step; from then on every w is nearer to 0 than ᾱ's."""
    found = variable(GRID, parameterisation, name="adamw", weight_decay=0.01)
    start = found.w.clone()
    step(found, 0)
    torch.testing.assert_close(found.w, start * (1 - 0.5 * 0.01), rtol=1e-14, atol=0)
    moved = start != 0
    assert torch.equal(found.side()[moved], -torch.sign(start)[moved])


def test_the_regulariser_pulls_back_to_the_anchor_from_either_side_of_it():
    """A second fit starts elsewhere than at ᾱ; an ᾱ outside (0, 1) is on one side of everything."""
    anchor = [0.1, 0.1, 0.3, 0.3, 0.3, 0.0, 1.0, -2.0, 1.5]
    starts = [0.1, 0.2, 0.3, 0.3 - 1e-12, 0.3 + 1e-12, 0.5, 0.5, 0.5, 0.5]
    found = variable(starts, anchor=anchor)
    assert found.side().tolist() == [0, 1, 0, -1, 1, 1, -1, 1, -1]


def test_the_authors_sign_is_that_of_their_fp32_arithmetic():
    """At 0.17 fp32's sigmoid(logit(ᾱ)) is 1.5e-8 below ᾱ, at the paper's values it is ᾱ."""
    assert authors_sign([0.1, 0.17, 0.2, 0.3], "cpu").tolist() == [0, -1, 0, 0]
    for number in np.linspace(0.005, 0.995, 199):
        anchor = torch.tensor([number] * 3, dtype=torch.float32)
        w = torch.nn.Parameter(torch.logit(anchor).unsqueeze(-1))
        (torch.sigmoid(w) - anchor.view(-1, 1)).abs().sum().backward()
        slope = (torch.sigmoid(w) * (1 - torch.sigmoid(w))).detach()
        assert authors_sign([number] * 3, "cpu") == pytest.approx((w.grad / slope).view(-1).numpy(), abs=1e-5)


def test_where_nothing_has_moved_the_given_sign_stands_for_zero():
    start = Coefficients(("a",), {"t": np.array([[0.17]]), "u": np.array([[0.3]])})
    at_rest = authors_sign([0.17, 0.17], "cpu")
    found = Variable(start, "sigmoid", Optimiser(lr=0.1, steps=1), np.array([0.17, 0.17]), at_rest=at_rest)
    assert found.side().tolist() == [-1, 1]
    assert variable([0.17, 0.3], anchor=[0.17, 0.17]).side().tolist() == [0, 1]


@pytest.mark.parametrize(
    ("lr", "period", "growth", "floor"),
    [(0.5, 50, 2, 0.1), (0.5, 50, 1, 0.0), (0.02, 7, 3, 0.0), (1.0, 1, 1, 0.5), (0.1, 1, 2, 1.0), (0.3, 9, 1, 0.25)],
)
def test_restarts_are_torchs(lr, period, growth, floor):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimiser = torch.optim.SGD([parameter], lr=lr)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimiser, period, growth, floor * lr)
    settings = Optimiser(lr=lr, steps=200, schedule="cosine_restarts", period=period, growth=growth, floor=floor)
    for number in range(200):
        assert learning_rate(settings, number) == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-12), number
        optimiser.step()
        scheduler.step()


def test_the_authors_restarts_are_the_default():
    settings = Optimiser(lr=0.5, steps=200, schedule="cosine_restarts")
    rates = [learning_rate(settings, number) for number in (6, 49, 50, 100)]
    assert rates == pytest.approx([0.4842, 0.0504, 0.5, 0.275], abs=5e-5)


@pytest.mark.parametrize(("key", "value"), [("growth", 0), ("growth", 1.5), ("floor", -0.1), ("floor", 1.1)])
def test_bounds_of_the_restarts(key, value):
    known = {"name": "adamw", "lr": 0.1, "weight_decay": 0.0, "steps": 5, "schedule": "cosine_restarts"}
    method = get("expert_merging")
    check_options(method, {"optimiser": known | {"growth": 1, "floor": 0}}, "options", ())
    with pytest.raises(UserError, match=key):
        check_options(method, {"optimiser": known | {key: value}}, "options", ())
