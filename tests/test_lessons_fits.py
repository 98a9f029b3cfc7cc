"""The notebook on Expert Merging: what it shows of Eq. 1 to 3 against plain formulas, its fits, and its solutions."""

import math
import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import torch

from emkit.alignment import objectives
from emkit.coefficients import Coefficients
from emkit.errors import UserError
from eval.lessons import alignment, fit_checks, fit_figures, fit_words, fits, probe

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "02-expert-merging.ipynb"


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    zoo = probe.open_zoo("mini", "mistral", tmp_path_factory.mktemp("results"))
    return fits.setup(zoo, samples=1, tokens=8, most=2, held=1, initial=0.4, steps=2)


@pytest.fixture(scope="module")
def fitted(setup):
    return setup.fit()


@pytest.fixture(scope="module")
def at_start(setup):
    return alignment.seen(setup.zoo.live.set(setup.start), setup.calibration, batch=1)


def test_terms_are_the_formulas_on_states_of_a_model_merged_and_run_in_the_plain_way(setup, at_start):
    task = "Math"
    rows = [row for rows in setup.calibration.tasks[task].rows for row in rows]
    live = setup.zoo.live.set(setup.start)
    whole = live.backbone.load(setup.zoo.profile.models.experts[task])[0]  # with all that a merge leaves the base's
    said = []
    for model in (live.model, whole):
        each = []
        for row in rows:  # one chat at a time, unfolded, through transformers' own forward
            batch = live.backbone.encode(live.processor, [None], [row["question"]], [row["response"]])
            spoken = batch.pop("response_mask")
            with torch.no_grad():
                out = model(**batch, output_hidden_states=True)
            at = torch.cat([spoken[:, 1:], torch.zeros(1, 1, dtype=torch.bool)], dim=1)
            each.append((out.hidden_states[setup.calibration.hidden_layer][at], out.logits[at]))
        said.append(tuple(torch.cat(parts) for parts in zip(*each)))
    (h, z), (hk, zk) = said
    assert len(h) == len(at_start[task].weight)
    logp, logq = zk.log_softmax(-1), z.log_softmax(-1)
    found = alignment.terms(at_start[task])
    assert found["hidden"] == pytest.approx(float((h - hk).square().mean()), rel=1e-4)
    assert found["logit"] == pytest.approx(float((logp.exp() * (logp - logq)).sum(-1).mean()), rel=1e-4)


def test_tokens_are_those_of_the_experts_answers(setup, at_start):
    part = at_start["Code"]
    answers = [row["response"] for rows in setup.calibration.tasks["Code"].rows for row in rows]
    for number, answer in enumerate(answers):
        spoken = [token for token, at in zip(part.tokens, part.answer, strict=True) if at == number]
        assert "".join(spoken[:-1]).split() == answer.split()  # the last is the end token
        assert spoken[-1] == part.vocabulary.eos_token


def test_the_fit_logs_at_step_0_what_is_computed_here_and_another_merge_would_be_noticed(setup, fitted, at_start):
    found = fit_checks.check(setup, fitted, at_start)
    assert len(found) == 2 * len(setup.zoo.names) and found["relative difference"].max() < 1e-4
    assert "agree" in fit_words.checked(found).data
    elsewhere = alignment.seen(setup.zoo.live.set(0.3), setup.calibration, batch=1)
    with pytest.raises(ValueError, match="something else"):
        fit_words.checked(fit_checks.check(setup, fitted, elsewhere))


def test_slopes_by_the_chain_rule_are_those_found_by_nudging(setup):
    found = fit_checks.slopes(setup, setup.zoo.experts.vectors.names[:2], nudge=0.02)
    assert len(found) == 2 * len(setup.zoo.names)
    scale = found["nudged"].abs().max()
    assert (found["chain rule"] - found["nudged"]).abs().max() < 0.03 * scale


def test_a_fit_says_how_far_it_moved_and_beta_and_gamma_reach_it(setup, fitted):
    alpha = fitted.coefficients.flat()
    assert fitted.moved == pytest.approx(sum(abs(a - 0.4) for a in alpha) / len(alpha))
    turned = fits.sweep(setup, "beta", [0.5], "Code")[0.5]
    assert turned.options.beta == {"Chat": 1.0, "Math": 1.0, "Code": 0.5}
    tied = fits.sweep(setup, "gamma", [1e6])[1e6]
    assert tied.options.gamma == 1e6 and tied.options.optimiser.steps == 2
    with pytest.raises(UserError, match="no expert 'Nobody'"):
        fits.sweep(setup, "beta", [1.0], "Nobody")


def test_held_out_samples_are_the_last_drawn_and_in_no_fit(setup):
    shown = lambda calibration: {r["key"] for t in calibration.tasks.values() for rows in t.rows for r in rows}  # noqa: E731
    assert not shown(setup.unseen) & shown(setup.with_samples(2).calibration)
    assert all(task.samples == 1 for task in setup.unseen.tasks.values())


def test_measured_and_counted_have_a_line_for_each_merge_task_and_kind_of_samples(setup, fitted):
    asked = {"Math": probe.questions(setup.zoo, "Math", 2)}
    found = fits.measured(setup, {"start": setup.start, "fit": fitted}, asked)
    assert found[["merge", "task"]].values.tolist() == [["start", "Math"], ["fit", "Math"]]
    setup.zoo.live.set(setup.start)
    assert found["loss"][0] == pytest.approx(probe.loss(setup.zoo.live, asked["Math"]))
    counted = fits.counted(setup, {1: fitted})
    assert set(counted["samples"]) == {"fitted", "unseen"} and len(counted) == 2 * len(setup.zoo.names)


def test_words_say_what_frames_hold():
    frame = pd.DataFrame(
        {"value": [0.1, 0.1, 10, 10], "task": ["A", "B"] * 2, "logit": [4.0, 1.0, 2.0, 3.0], "hidden": 1.0}
    )
    said = fit_words.traded(frame, "A", "B").data
    assert "A goes from 4 to 2" in said and "B goes from 1 to 3" in said
    start = pd.DataFrame({"logit": [5.0, 7.0]})
    said = fit_words.swept({"all": frame}, "β", start).data
    assert "start Eq. 2 is 6" in said and "β = 0.1 (2.5)" in said


def test_published_ablations_are_the_papers_with_the_backbone_first(setup):
    found = fit_words.published(4, setup.zoo)
    assert next(iter(found)) == "Mistral" and found.loc["w/o coefficient regularization", "Mistral"] == 40.81


def test_a_table_that_was_not_run_says_which_command_runs_it(setup):
    assert fits.recorded(setup.zoo) is None
    assert (
        "make reproduce-table3" in fit_words.recorded(setup.zoo).data
        or "reproduce" in fit_words.recorded(setup.zoo).data
    )


def test_numbers_of_a_parameter():
    assert fits.numbers("0.1, 1,10") == [0.1, 1.0, 10.0]
    with pytest.raises(UserError, match="no list of numbers"):
        fits.numbers("a few")
    with pytest.raises(UserError, match="raise `most`"):
        fits.setup(probe.open_zoo("mini", "mistral"), samples=3, most=2)


def test_figures_draw_every_line(setup, fitted, at_start):
    figure = fit_figures.course(fitted.history, setup.zoo.names)
    assert len(figure.axes) == 2 + len(setup.zoo.names)
    assert len(figure.axes[2].lines) == len(setup.start.values) + 2  # each tensor, the mean, where it began
    part = at_start["Code"]
    each = objectives.logit_alignment(part.merged_final, part.head, part.expert_final, part.expert_head)
    peak = fit_figures.worst(part, 0)
    assert part.answer[peak] == 0 and float(each[peak]) == pytest.approx(float(each[part.answer == 0].max()))
    bars = [bar.get_width() for bar in fit_figures.next_token(part, peak, temperatures=(1.0,)).axes[0].patches]
    assert 0 < max(bars) <= 1 and math.isfinite(sum(bars))


def test_the_solutions_run_after_the_notebooks_cells(setup, fitted, capsys):
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    solutions = [code for cell in cells for code in re.findall(r"```python\n(.*?)```", cell.source, re.DOTALL)]
    assert len(solutions) == 3
    names = {"setup": setup, "zoo": setup.zoo, "fitted": fitted, "other": "Chat", "initial": 0.4}
    names["at_rest"] = setup.losses(setup.start)
    for code in solutions:
        exec(code, names)  # our own notebook's text
    said = capsys.readouterr().out
    assert "one number for each expert" in said and "T = 4" in said and "mean α of Chat" in said
    assert isinstance(names["ignored"].coefficients, Coefficients)


def test_code_cells_are_short_and_prose_is_longer():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    code = [
        cell.source for cell in cells if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", [])
    ]
    lengths = sorted(len([line for line in source.splitlines() if line.strip()]) for source in code)
    assert lengths[len(lengths) // 2] <= 6 and max(lengths) <= 8
    assert not any(re.search(r"^\s*(def|class) ", source, re.MULTILINE) for source in code)
    assert sum(len(c.source) for c in cells if c.cell_type == "markdown") > sum(map(len, code))
