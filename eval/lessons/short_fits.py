"""Expert Merging's coefficients for a notebook: as a table's run left them, or from a fit short enough to wait for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from emkit.alignment.calibration import Calibration
from emkit.alignment.importance import chunked_start
from emkit.alignment.objectives import objective
from emkit.alignment.variable import Optimiser
from emkit.coefficients import Coefficients
from emkit.determinism import deterministic
from emkit.errors import UserError
from emkit.methods.expert_merging import ExpertMerging, aligned
from eval import merging
from eval.lessons.probe import Zoo
from eval.places import Job


@dataclass(frozen=True)
class Learned:
    """Coefficients of one or several seeds, and in words where they are from; ``flat`` says that nothing learned them:
    all are λ of Task Arithmetic."""

    seeds: Mapping[int, Coefficients]
    origin: str
    flat: bool = False


def row_of(zoo: Zoo) -> str:
    """The row of the zoo's table that is plain Expert Merging; ``UserError`` where it has none."""
    plan = zoo.plan
    found = [name for name, row in plan.rows.items() if row.method == "expert_merging"]
    if not found:
        raise UserError(f"{plan.table.title} has no row of Expert Merging, whose coefficients this notebook looks at")
    return found[0]


def scale_of(zoo: Zoo, scale: float) -> float:
    """λ where a fit starts: what the table's run chose on validation items, ``scale`` where it has not been run."""
    chosen = zoo.plan.chosen_scale(row_of(zoo))
    return scale if chosen is None else chosen


def learned(zoo: Zoo, steps: int, samples: int = 1, scale: float = 0.3) -> Learned:
    """Expert Merging's coefficients of a zoo: those that the run of its table left, of every seed; else of a short fit;
    for ``steps`` 0 Task Arithmetic's λ everywhere."""
    row, plan = row_of(zoo), zoo.plan
    files = {seed: plan.cells(Job(row, seed)) / "coefficients.json" for seed in plan.seeds(row)}
    kept = {seed: Coefficients.load(path) for seed, path in files.items() if path.is_file()}
    if kept:
        return Learned(kept, f"learned by the run of {plan.table.title}, seeds {', '.join(map(str, kept))}")
    missing, start = f"`{plan.command}` has not been run", scale_of(zoo, scale)
    if steps == 0:
        vectors = zoo.experts.vectors
        constant = Coefficients.constant(vectors.names, dict.fromkeys(vectors.experts, start))
        return Learned({0: constant}, f"not learned: λ = {start} everywhere, for {missing}", flat=True)
    fit = ShortFit(zoo, steps=steps, samples=samples, scale=scale)
    of = f"{samples} sample{'s' * (samples > 1)} of every expert, from λ = {start}"
    return Learned({fit.seed: fit.first()}, f"from a short fit here, {steps} steps on {of}, for {missing}")


def origins(found: Mapping[str, Learned]) -> str:
    """Where each backbone's coefficients are from, as a Markdown list."""
    return "\n".join(f"- **{name}**: {each.origin}" for name, each in found.items())


class ShortFit:
    """Expert Merging and Expert Merging++ as a profile fits them, with fewer steps and samples.

    Options, objective and fit are those of the table's row; calibration sets and fits are kept in the plan's cache.
    """

    def __init__(self, zoo: Zoo, *, steps: int, samples: int = 1, scale: float = 0.3, seed: int = 0):
        row, plan = row_of(zoo), zoo.plan
        if steps < 1:
            raise UserError(f"a fit needs at least one step, not {steps}")
        made = merging.merging(plan, Job(row, seed, scale=scale_of(zoo, scale)), plan.cache)
        settings = plan.calibration(row).model_copy(update={"samples": samples})
        self.seed, self.learner = seed, replace(made.context.learner(), samples=settings)
        self.options: ExpertMerging = made.context.options
        self.optimiser = self.options.optimiser.model_copy(update={"steps": steps})
        self.vectors = made.context.task_vectors
        self.initial = self.learner.constant(self.options.initial)

    @cached_property
    def calibration(self) -> Calibration:
        """The experts' answers and states on the unlabeled samples."""
        with deterministic():
            return self.learner.calibration(self.options.hidden_layer, self.options.tokens)

    def first(self) -> Coefficients:
        """Expert Merging: one coefficient for each merged tensor and expert."""
        return self._fit(self.initial, self.optimiser, len(self.initial.values))[0]

    def chunked(self, stage1: Coefficients, chunks: Mapping[str, int]) -> Coefficients:
        """The second fit of Expert Merging++ from ``stage1``, with ``chunks[name]`` coefficients for each expert; a
        tensor of 0 chunks stays at its ``stage1`` value. (R divides by the number of chunks.)"""
        sizes = {name: self.vectors.numel(name) for name in self.vectors.names}
        start = chunked_start(stage1, self.initial, dict(chunks), "stage1", "stage1", sizes)
        return self._fit(start, self.optimiser, max(sum(chunks.values()), 1))[0]

    def loss(self, coefficients: Coefficients) -> float:
        """Σ_k β_k (L_hid^(k) + L_logit^(k)) on all samples, without R: how far the merge is from its experts."""
        once = self.optimiser.model_copy(update={"steps": 1, "batch": "all"})
        before = self._fit(coefficients, once, 1)[1]["history"][0]  # losses before the step
        return float(objective(before["tasks"], self.options.given_beta))

    def _fit(self, start: Coefficients, optimiser: Optimiser, count: float) -> tuple[Coefficients, dict]:
        options = self.options.model_copy(update={"optimiser": optimiser})
        with deterministic():
            return aligned(self.learner, options, self.calibration, start, count)
