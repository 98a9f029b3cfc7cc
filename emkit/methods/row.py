"""The job that runs one method for a row of a table: from recipe to checkpoint folder and report."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from emkit import backbones, layouts
from emkit.alignment.learner import Learned
from emkit.alignment.like import check_method
from emkit.alignment.options import EngineOptions
from emkit.checkpoints import Checkpoint, write_checkpoint
from emkit.determinism import deterministic
from emkit.errors import UserError
from emkit.files import write_json
from emkit.merging import Context
from emkit.methods import VALIDATION, Method, get
from emkit.methods.key import content_key
from emkit.shards import SHARD_BYTES
from emkit.task_vectors import TaskVectors


def merge_row(
    recipe: Any,
    row: str,
    seed: int,
    out: str | Path,
    cache: str | Path,
    scale: float | None = None,
    progress: bool = False,
    engine: EngineOptions | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> dict:
    """Merge one row into the checkpoint folder ``out`` and return its report (a JSON value).

    ``scale`` is the λ that the recipe's rule chose, for methods that need one. Learned methods keep calibration sets
    and fits under ``cache``, resume them after a kill, and leave ``coefficients.json`` and ``history.json`` beside
    ``out``; ``engine`` says what a fit may use of the machine. A merge that was killed goes on at its first unfinished
    shard. The same arguments give the same bytes. ``UserError`` for bad input, before anything long starts.
    """
    entry = recipe.row(row)
    if entry["method"] is None:
        raise UserError(f"row '{row}' has no method yet: its cells are shown as not run")
    use = engine or EngineOptions()
    check_method(use.like, entry["method"])
    recipe, method = replace(recipe, like=use.like), get(entry["method"])
    backbone = backbones.get(recipe.backbone)
    base = Checkpoint.open(recipe.model("base"))
    experts = {name: Checkpoint.open(path) for name, path in recipe.experts.items()}
    task_vectors = TaskVectors(base, layouts.aligned(base, experts, backbone), backbone.merged_names)
    context = Context(
        task_vectors=task_vectors,
        options=recipe.settings(entry),
        scale=entry.get("scale", scale),
        seed=seed,
        device=recipe.device,
        backbone=backbone,
        calibration=recipe.calibration,
        first=recipe.method_settings(method.inherits) if method.inherits else None,
        cache=Path(cache),
        progress=progress,
        engine=use,
        model=_model(recipe, entry, method, task_vectors),
    )
    if method.scale_from == VALIDATION and context.scale is None:
        raise UserError(f"row '{row}' needs a scale: choose it on the validation items first")
    options = context.options.model_dump()
    with deterministic():
        merge = method.run(context)
        key = content_key(context, method.name, merge)
        write_checkpoint(out, merge.tensors, merge.like, card(recipe, entry, seed, options), shard_bytes, key)
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
    if recipe.like is not None:
        report |= {"like": recipe.like, "options": options}
    if merge.learned is not None:
        report |= leave(merge.learned, Path(out).parent)
    return report


def _model(recipe: Any, entry: Mapping, method: Method, task_vectors: TaskVectors) -> Checkpoint | None:
    """The one model that a row without a merge is: an expert under the base's names, or any model as it lies there."""
    if "expert" in method.needs:
        return task_vectors.checkpoints[entry["model"]]
    return Checkpoint.open(recipe.model(entry["model"])) if "model" in method.needs else None


def leave(learned: Learned, folder: Path) -> dict:
    """Write the coefficients and the history beside the merged model; what the report says of them."""
    learned.coefficients.save(folder / "coefficients.json")
    write_json(folder / "history.json", {"stages": learned.stages, "calibration": learned.calibration})
    return {
        "coefficients": "coefficients.json",
        "history": "history.json",
        "trainable_coefficients": len(learned.coefficients.flat()),
        "calibration": learned.calibration,
    }


def card(recipe: Any, row: Mapping, seed: int, options: Mapping) -> str:
    """The merged model's card: what it was made from, and how; ``options`` where they are not the recipe's own."""
    experts = "\n".join(f"- {name}: `{path}`" for name, path in recipe.experts.items())
    return (
        f"# {row['label']}\n\nMade by emkit, row `{row['id']}` (method `{row['method']}`, seed {seed}) of the recipe "
        f"`{recipe.profile}/{recipe.backbone}`, sha256 `{recipe.sha256}`.\n\nBase: `{recipe.model('base')}`\n\n"
        f"Experts:\n\n{experts}\n"
        + (f"\nOptions, as `--like {recipe.like}` sets them: `{json.dumps(options)}`\n" if recipe.like else "")
    )
