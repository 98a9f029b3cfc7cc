"""Coefficients by row: gradients against autograd, the sums against those of chunks; β by a rule; the method whole."""

import json
import math
from pathlib import Path

import numpy as np
import own_models as own
import pytest
import torch
from engine_toys import by_autograd, problem, toy

from emkit import backbones, cli, explain, pretrained
from emkit.alignment.arithmetic import Arithmetic, Rows
from emkit.alignment.fit import TOLD, fit
from emkit.alignment.losses import Alignment
from emkit.alignment.merged_model import MergedModel, bounds
from emkit.alignment.options import EngineOptions
from emkit.alignment.variable import Optimiser
from emkit.alignment.weighting import LEAST, Weighting, auto, balanced, subtasks
from emkit.coefficients import Coefficients, merge_tensor
from emkit.methods.expert_merging_rows import coefficients_by
from emkit.own import init

FAST = ("--option", "optimiser.steps=3", "--option", "optimiser.batch=1")


@pytest.fixture(scope="module", params=["internvl", "mistral"])
def made(request, tmp_path_factory):
    return toy(request.param, tmp_path_factory.mktemp(request.param))


def by_row(made) -> Coefficients:
    """Another value in every row of every matrix."""
    rng, values = np.random.default_rng(4), {}
    for name in made.task_vectors.names:
        shape = made.task_vectors.base.info(name).shape
        values[name] = rng.uniform(0.1, 0.4, size=(2, shape[0] if len(shape) == 2 else 1))
    return Coefficients(made.task_vectors.experts, values)


def test_gradients_by_row_are_autograds(made):
    start, objective = by_row(made), Alignment(hidden_weight=0.3)
    losses, expected = by_autograd(made, made.model(), start, objective)
    model = made.model()
    merged = MergedModel(model, made.task_vectors, start, made.backbone.parameter_name)
    found = problem(made, model, objective).losses(0)
    assert isinstance(merged.bounds[made.task_vectors.names[-1]], range)
    for task, terms in losses.items():
        for term, value in terms.items():
            assert math.isclose(found[task][term], value, rel_tol=2e-6, abs_tol=1e-7)
    gradient = merged.gradient().numpy()
    assert len(gradient) == len(start.flat()) > 100
    assert np.abs(gradient - expected).max() <= 1e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block", [1, 10, 64, 10**6])
def test_sums_by_row_are_those_of_chunks(block, dtype, given):
    """The same chunks as a list and as a range; blocks smaller than a row, of several, of the whole."""
    shape, generator = (9, 7), torch.Generator().manual_seed(1)
    base, *others = (torch.randn(63, generator=generator).to(dtype) for _ in range(4))
    taus = [other.float() - base.float() for other in others]
    rows = Rows(base, taus if given else others, given)
    alpha = torch.rand(3, 9, generator=generator, dtype=torch.float64)
    gradient = torch.randn(63, generator=generator).to(dtype)
    there = bounds(shape, 9)
    assert isinstance(there, range) and list(there) == [7 * i for i in range(10)]
    out = torch.empty(63, dtype=dtype)
    arithmetic = Arithmetic("cpu", torch.float32, block)
    arithmetic.merge(rows, alpha, there, out)
    # one rounding to the dtype; where sums of another order fall on the other side of one, one unit
    wanted = merge_tensor(base.reshape(shape), [tau.reshape(shape) for tau in taus], alpha.numpy()).reshape(-1)
    torch.testing.assert_close(out, wanted, rtol=torch.finfo(dtype).eps, atol=1e-6)
    exact = torch.stack([(tau.double() * gradient.double()).reshape(shape).sum(1) for tau in taus])
    torch.testing.assert_close(arithmetic.contract(rows, gradient, there), exact, rtol=1e-5, atol=1e-5)


def test_only_whole_rows_of_a_matrix_are_a_range():
    assert isinstance(bounds((9, 7), 3), list) and isinstance(bounds((9,), 9), list)
    assert isinstance(bounds((1, 7), 1), list)  # one coefficient is one coefficient


def test_how_many_coefficients_each_granularity_has():
    shapes = {"l.0.self_attn.q_proj.weight": (8, 6), "l.0.self_attn.k_proj.weight": (4, 6)}
    shapes |= {"l.0.self_attn.o_proj.weight": (6, 8), "l.0.mlp.up_proj.weight": (12, 6), "norm.weight": (6,)}
    shapes |= {"l.0.self_attn.v_proj.weight": (3, 6)}
    counted = lambda by: list(coefficients_by(by, shapes, 2, backbones.get("mistral").by_head).values())  # noqa: E731
    assert counted("row") == [8, 4, 6, 12, 1, 3]
    assert counted("head") == [4, 2, 1, 1, 1, 1]  # 3 rows are no heads of 2
    assert counted("tensor") == [1] * 6


def test_a_long_history_tells_no_single_coefficients(made, monkeypatch):
    start = by_row(made)
    few = fit(problem(made, made.model()), start=start, optimiser=Optimiser(lr=0.01, steps=1))
    assert len(few.history[0]["alpha"]) == len(start.flat()) <= TOLD
    monkeypatch.setattr("emkit.alignment.fit.TOLD", 10)
    many = fit(problem(made, made.model()), start=start, optimiser=Optimiser(lr=0.01, steps=1))
    assert "alpha" not in many.history[0] and many.history[0]["coefficients"] == few.history[0]["coefficients"]


# ---- β by a rule
def test_auto_makes_every_kind_of_question_count_alike_at_the_base():
    beta = auto({"Chat": 1.0, "Math": 0.7, "Code": 0.2}, {"Chat": 1, "Math": 2, "Code": 2})
    assert {k: round(v, 12) for k, v in beta.items()} == {"Chat": 1.0, "Math": round(2 / 0.7, 12), "Code": 10.0}
    beta = auto({"Chat": 1.0, "Same": 0.0}, {"Chat": 1, "Same": 1})
    assert beta == {"Chat": 1.0, "Same": 1 / LEAST}
    assert auto({"a": 0.0, "b": 0.0}, {"a": 1, "b": 2}) == {"a": 1.0, "b": 2.0}


def test_balanced_is_the_gradient_of_the_smoothed_maximum():
    """Against autograd of K · log Σ exp(15 L_k / L_k(base)) / 15."""
    base = {"Chat": 1.0, "Math": 0.7, "Code": 0.2}
    losses = torch.tensor([0.31, 0.2, 0.05], dtype=torch.float64, requires_grad=True)
    relative = losses / torch.tensor(list(base.values()), dtype=torch.float64)
    (3 * torch.logsumexp(15 * relative, 0) / 15).backward()
    found = balanced(base, dict(zip(base, relative.tolist())))
    np.testing.assert_allclose(list(found.values()), losses.grad, rtol=1e-12)
    worst = balanced(base, {"Chat": 900.0, "Math": 0.0, "Code": 0.0})
    assert worst["Chat"] == 3.0 and worst["Code"] == 0.0  # nothing overflows


def test_balanced_follows_the_losses_and_auto_does_not():
    given = {"counts": {"a": 1, "b": 1}, "base": {"a": 1.0, "b": 1.0}, "start": {"a": 0.5, "b": 0.5}}
    history = [{"tasks": {"a": {"hidden": 0.5, "logit": 0.4}, "b": {"hidden": 0.0, "logit": 0.1}}}] * 5
    rule = Weighting(rule="balanced", **given)
    assert rule.beta([]) == {"a": 1.0, "b": 1.0}
    shares = [rule.beta(history[:n])["a"] for n in range(6)]
    assert shares == sorted(shares) and shares[1] > 1.3
    assert Weighting(rule="auto", **given).beta(history) == {"a": 1.0, "b": 1.0}


def test_losses_are_measured_as_a_step_on_all_samples_has_them(made):
    start, objective = by_row(made), Alignment(hidden_weight=0.3)
    minimised = problem(made, made.model(), objective)
    measured = minimised.measured(start, EngineOptions())
    merged = MergedModel(minimised.model, made.task_vectors, start, made.backbone.parameter_name)
    found = minimised.losses(0)
    merged.close()
    assert list(measured) == list(found)
    for task in found:
        for term, value in found[task].items():
            assert math.isclose(measured[task][term], value, rel_tol=1e-6)
    assert all(subtasks(task) >= 1 for task in made.calibration.tasks.values())


# ---- the whole method, and β of one's own merges
@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return own.write_models(tmp_path_factory.mktemp("own"))


def stage(out):
    return json.loads((out / "history.json").read_text(encoding="utf-8"))["stages"][-1]


def test_one_line_merges_by_rows_from_the_closed_form(models, tmp_path):
    cache = ("--cache", str(tmp_path / "cache"), "--samples", "2")
    closed = own.tensors(own.merge(models, tmp_path / "closed", "ridge_activations", *cache))
    slow = ("--option", "optimiser.steps=1", "--option", "optimiser.lr=1e-9")
    still = own.tensors(own.merge(models, tmp_path / "still", "expert_merging_rows", *cache, *slow))
    for name, tensor in still.items():
        torch.testing.assert_close(tensor, closed[name], rtol=2**-7, atol=1e-4)
    moved = own.merge(models, tmp_path / "moved", "expert_merging_rows", *cache, *FAST)
    found = stage(moved)
    assert found["beta"]["losses"]["end"] != found["beta"]["losses"]["start"]
    learned = Coefficients.load(moved / "coefficients.json")
    for name, value in learned.values.items():
        rows = closed[name].shape[0] if closed[name].ndim == 2 else 1
        assert value.shape[1] == rows and (rows == 1 or len(np.unique(value)) > rows)


@pytest.mark.parametrize("method", ["expert_merging", "expert_merging_pp"])
def test_own_merges_weigh_by_the_base_unless_told(models, tmp_path, method):
    cache = ("--cache", str(tmp_path / "cache"), "--samples", "2", *FAST)
    usual = stage(own.merge(models, tmp_path / "usual", method, *cache))
    assert usual["options"]["beta"] == "auto"
    losses, held = usual["beta"]["losses"], usual["beta"]["held_out"]
    units = {task: 1 / loss for task, loss in losses["base"].items()}
    for entry in usual["history"]:
        assert entry["beta"] == pytest.approx(units)
    assert set(held) == {"base", "start", "end"} and set(held["end"]) == {"math", "code"}  # the third prompt
    given = stage(own.merge(models, tmp_path / "given", method, *cache, "--option", "beta={math: 1, code: 1}"))
    assert "beta" not in given and "beta" not in given["history"][0]
    report = json.loads((tmp_path / "usual" / "emkit_merge.json").read_text(encoding="utf-8"))
    assert report["options"]["beta"] == "auto"
    theirs = own.flags(models, tmp_path / "theirs", method, "--like", "authors", *cache[:4])
    assert cli.main(theirs) == 0 and "beta" not in stage(tmp_path / "theirs")


def test_balanced_fits_and_prompts_that_are_used_up_hold_nothing_out(models, tmp_path):
    more = ("--samples", "3", "--option", "beta=balanced", *FAST)
    found = stage(own.merge(models, tmp_path / "out", "expert_merging", "--cache", str(tmp_path / "cache"), *more))
    assert found["beta"]["rule"] == "balanced" and found["beta"]["held_out"] == {}
    assert len({entry["beta"]["math"] for entry in found["history"]}) == 3


def test_a_rule_that_there_is_not(models, tmp_path, capsys):
    assert cli.main(own.flags(models, tmp_path / "out", "expert_merging", "--option", "beta=autos")) == 2
    assert "options.beta: unknown value 'autos': did you mean 'auto'?" in capsys.readouterr().err


def test_balanced_and_the_authors_order_are_refused_before_anything_long(models, tmp_path, capsys):
    both = ("--option", "beta=balanced", "--like", "authors", "--cache", str(tmp_path / "cache"))
    assert cli.main(own.flags(models, tmp_path / "out", "expert_merging", *both)) == 2
    assert "beta balanced compares tasks at every step" in capsys.readouterr().err
    assert not list((tmp_path / "cache").glob("calibration/*"))


def test_the_base_is_loaded_once_for_a_fit_and_what_is_held_out(models, tmp_path, monkeypatch):
    """Two models on a GPU at a time, base and teacher, and not three."""
    loads, load = [], pretrained.load

    def noted(auto, folder, *rest):
        loads.append(Path(folder).name)
        return load(auto, folder, *rest)

    monkeypatch.setattr(pretrained, "load", noted)
    own.merge(models, tmp_path / "out", "expert_merging", "--cache", str(tmp_path / "cache"), "--samples", "2", *FAST)
    assert loads.count("base") == 1 and loads.count("math") == 2  # for its samples, and for the one more


def test_what_is_explained_and_written_says_what_holds_for_own_models(tmp_path):
    assert "of one's own models auto" in explain.method("expert_merging")
    init.write(tmp_path / "r.yaml", "expert_merging", "base", {"a": "a"})
    assert "# beta: auto" in (tmp_path / "r.yaml").read_text(encoding="utf-8")
