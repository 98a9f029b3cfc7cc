"""The merging methods: a registry of small functions, and the job that runs one of them for a row of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

from emkit import backbones
from emkit.checkpoints import Checkpoint, write_checkpoint
from emkit.coefficients import Coefficients
from emkit.combine.linear import mean_experts, merge_experts
from emkit.errors import UserError
from emkit.files import write_json
from emkit.learning import Learned, Learner
from emkit.recipe import Recipe
from emkit.schema import nearest
from emkit.task_vectors import TaskVectors

Tensors = Iterator[tuple[str, torch.Tensor]]


@dataclass(frozen=True)
class Context:
    """What a method may use: the row's recipe, seed and free scale, and the checkpoints, opened and compared."""

    recipe: Recipe
    row: Mapping
    seed: int
    cache: Path
    scale: float | None
    progress: bool
    backbone: ModuleType
    base: Checkpoint
    task_vectors: TaskVectors

    def needed_scale(self) -> float:
        """The free scale: the row's own, else the one that the recipe's rule chose; ``UserError`` if there is none."""
        scale = self.row.get("scale", self.scale)
        if scale is None:
            raise UserError(f"row '{self.row['id']}' needs a scale: choose it on the validation items first")
        return float(scale)


@dataclass(frozen=True)
class Merge:
    """A method's result: the merged tensors, one at a time, the checkpoint whose side files they come with, and, for
    linear methods, their coefficients; ``learned`` holds what a fit left behind."""

    tensors: Tensors
    like: Checkpoint
    coefficients: Coefficients | None = None
    scale: float | None = None
    learned: Learned | None = None


@dataclass(frozen=True)
class Method:
    """``needs``: ``scale`` (a free scale, chosen on validation items) and ``calibration`` (so it is random)."""

    name: str
    needs: frozenset[str]
    run: Callable[[Context], Merge]

    @property
    def random(self) -> bool:
        """Whether another seed gives another result."""
        return "calibration" in self.needs


REGISTRY: dict[str, Method] = {}


def _method(*needs: str) -> Callable:
    """Register the function under its own name."""

    def register(run: Callable[[Context], Merge]) -> Callable:
        REGISTRY[run.__name__] = Method(run.__name__, frozenset(needs), run)
        return run

    return register


def get(name: str) -> Method:
    """The method called ``name``; ``UserError`` for an unknown one."""
    if name not in REGISTRY:
        raise UserError(f"unknown method '{name}': {nearest(name, REGISTRY)}")
    return REGISTRY[name]


@_method()
def checkpoint(ctx: Context) -> Merge:
    """A model of the recipe as it is: the base, an expert, or the mixture-trained one."""
    found = Checkpoint.open(ctx.recipe.model(ctx.row["model"]))
    return Merge(((name, found.read(name)) for name in found.names), found)


@_method()
def reset_expert(ctx: Context) -> Merge:
    """An expert with its unmerged tensors reset to the base's: the most of this expert that merging can reach."""
    expert, merged = ctx.task_vectors.checkpoints[ctx.row["model"]], set(ctx.task_vectors.names)
    return Merge(((name, (expert if name in merged else ctx.base).read(name)) for name in ctx.base.names), ctx.base)


@_method()
def weight_average(ctx: Context) -> Merge:
    """Weight Average: the mean of the experts over the merged tensors; the base is not in the mean.

    (The authors' code scales the mean task vector by 0.1 unless told otherwise, which is no average.)
    """
    return Merge(_replaced(ctx, lambda name, base, experts: mean_experts(base, experts)), ctx.base)


@_method("scale")
def task_arithmetic(ctx: Context) -> Merge:
    """Task Arithmetic: θ_base + λ Σ_k τ_k with one λ for all (Section 3.1)."""
    scale = ctx.needed_scale()
    coefficients = Coefficients.constant(ctx.task_vectors.names, dict.fromkeys(ctx.task_vectors.experts, scale))
    return _linear(ctx, coefficients, scale)


@_method("scale", "calibration")
def expert_merging(ctx: Context) -> Merge:
    """Expert Merging: one learned coefficient per merged tensor and expert (Section 3.2)."""
    learned = _learner(ctx).expert_merging(ctx.recipe.settings(ctx.row))
    return _linear(ctx, learned.coefficients, ctx.scale, learned)


@_method("scale", "calibration")
def expert_merging_pp(ctx: Context) -> Merge:
    """Expert Merging++: Expert Merging, then one learned coefficient per chunk, chunks by importance (Section 3.3)."""
    first = ctx.recipe.data["methods"]["expert_merging"]
    learned = _learner(ctx).expert_merging_pp(first, ctx.recipe.settings(ctx.row))
    return _linear(ctx, learned.coefficients, ctx.scale, learned)


def _learner(ctx: Context) -> Learner:
    scale = ctx.row.get("scale", ctx.scale)
    return Learner(ctx.backbone, ctx.task_vectors, ctx.recipe, ctx.seed, ctx.cache, scale, ctx.progress)


def _linear(
    ctx: Context, coefficients: Coefficients, scale: float | None = None, learned: Learned | None = None
) -> Merge:
    """θ_base + Σ_k Σ_s α_{k,s} τ_{k,s} over the merged tensors, the base elsewhere (Eq. 5)."""

    def combine(name: str, base: torch.Tensor, experts: list[torch.Tensor]) -> torch.Tensor:
        return merge_experts(base, experts, coefficients.values[name])

    return Merge(_replaced(ctx, combine), ctx.base, coefficients, scale, learned)


def _replaced(ctx: Context, combine: Callable[[str, torch.Tensor, list[torch.Tensor]], torch.Tensor]) -> Tensors:
    """The base's tensors with each merged one replaced by ``combine(name, base, experts)``."""
    merged = set(ctx.task_vectors.names)
    for name in ctx.base.names:
        yield name, combine(name, *ctx.task_vectors.read(name)) if name in merged else ctx.base.read(name)


def merge_row(
    recipe: Recipe,
    row: str,
    seed: int,
    out: str | Path,
    cache: str | Path,
    scale: float | None = None,
    progress: bool = False,
) -> dict:
    """Merge one row into the checkpoint folder ``out`` and return its report (a JSON value).

    ``scale`` is the λ that the recipe's rule chose, for methods that need one. Learned methods keep calibration sets
    and fits under ``cache``, resume them after a kill, and leave ``coefficients.json`` and ``history.json`` beside
    ``out``. The same arguments give the same bytes. ``UserError`` for bad input, before anything long starts.
    """
    entry = recipe.row(row)
    if entry["method"] is None:
        raise UserError(f"row '{row}' has no method yet: its cells are shown as not run")
    method = get(entry["method"])
    backbone = backbones.get(recipe.backbone)
    base = Checkpoint.open(recipe.model("base"))
    experts = {name: Checkpoint.open(path) for name, path in recipe.experts.items()}
    task_vectors = TaskVectors(base, experts, backbone.merged_names)
    context = Context(recipe, entry, seed, Path(cache), scale, progress, backbone, base, task_vectors)
    with _deterministic():
        merge = method.run(context)
        write_checkpoint(out, merge.tensors, merge.like, card(recipe, entry, seed))
    report = {
        "row": row,
        "method": method.name,
        "seed": seed,
        "scale": merge.scale,
        "recipe_sha256": recipe.sha256,
        "base_sha256": base.sha256(),
        "experts_sha256": {name: expert.sha256() for name, expert in experts.items()},
        "model_sha256": Checkpoint.open(out).sha256(),
        "merged_tensors": len(task_vectors.names),
    }
    if merge.learned is not None:
        report |= _leave(merge.learned, Path(out).parent)
    return report


def _leave(learned: Learned, folder: Path) -> dict:
    """Write the coefficients and the history beside the merged model; what the report says of them."""
    learned.coefficients.save(folder / "coefficients.json")
    write_json(folder / "history.json", {"stages": learned.stages, "calibration": learned.calibration})
    return {
        "coefficients": "coefficients.json",
        "history": "history.json",
        "trainable_coefficients": len(learned.coefficients.flat()),
        "calibration": learned.calibration,
    }


class _deterministic:
    """Deterministic torch kernels inside the block, what was before after it."""

    def __enter__(self):
        self.before = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(True, warn_only=True)

    def __exit__(self, *error):
        torch.use_deterministic_algorithms(self.before)


def card(recipe: Recipe, row: Mapping, seed: int) -> str:
    """The merged model's card: what it was made from, and how."""
    experts = "\n".join(f"- {name}: `{path}`" for name, path in recipe.experts.items())
    return (
        f"# {row['label']}\n\nMade by emkit, row `{row['id']}` (method `{row['method']}`, seed {seed}) of the recipe "
        f"`{recipe.profile}/{recipe.backbone}`, sha256 `{recipe.sha256}`.\n\nBase: `{recipe.model('base')}`\n\n"
        f"Experts:\n\n{experts}\n"
    )
