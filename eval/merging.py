"""A row of a table as one merge: what the merge job runs with, and what is kept of it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emkit import backbones, layouts
from emkit.alignment.like import check_method
from emkit.alignment.options import EngineOptions
from emkit.backbones.base import Backbone
from emkit.checkpoints import Checkpoint
from emkit.content import side_files_sha256
from emkit.errors import UserError
from emkit.files import atomic_dir, sha256_json
from emkit.job import Job as Merging
from emkit.job import save_learned
from emkit.locks import lock
from emkit.merging import Context
from emkit.methods import VALIDATION, Method
from emkit.own import tokens
from emkit.own.adapters import with_adapters
from emkit.shards import SHARD_BYTES
from emkit.task_vectors import TaskVectors
from eval.checkpoints import base_and_experts
from eval.places import Job
from eval.plan import Plan


def merging(plan: Plan, job: Job, cache: Path, progress: bool = False, engine: EngineOptions | None = None) -> Merging:
    """The row's merge, its models opened; ``job.scale`` is the λ that was chosen for it, or given.

    ``UserError`` for models that do not fit, for a row without a method, and for one that lacks its scale.
    """
    row, entry, profile = job.row, plan.entry(job.row), plan.profile
    if entry.method is None:
        raise UserError(f"row '{row}' has no method yet: its cells are shown as not run")
    use, method = engine or profile.fits.engine, plan.method(row)
    check_method(use.like, method.name)
    given = plan.given_scale(row)
    scale = job.scale if given is None else given
    if method.scale_from == VALIDATION and scale is None:
        raise UserError(f"row '{row}' needs a scale: choose it on the validation items first")
    backbone = backbones.get(profile.backbone)
    folders = {role: plan.folder(role) for role in ("base", *profile.models.experts)}
    base, experts = base_and_experts(folders.pop("base"), folders, backbone, profile.models.base)
    task_vectors = TaskVectors(base, layouts.aligned(base, experts, backbone), backbone.merged_names)
    context: Context[Any] = Context(
        task_vectors=task_vectors,
        options=plan.settings(row, use.like),
        scale=scale,
        seed=job.seed,
        device=profile.device,
        backbone=_asking(plan, with_adapters(backbone, experts)),
        calibration=plan.calibration(row),
        first=plan.first(row, use.like),
        cache=cache,
        progress=progress,
        engine=use,
        model=_model(plan, row, method, base, experts, task_vectors),
    )
    return Merging(method, context)


def _asking(plan: Plan, backbone: Backbone) -> Backbone:
    """The backbone as it asks every model with the tokenizer of one, where the profile names one: that model's
    tokenizer and template beside the base's configuration and whatever looks at pictures."""
    owner = plan.profile.models.tokenizer
    if owner is None:
        return backbone
    base, theirs = plan.folder("base"), plan.folder(owner)
    name = sha256_json([side_files_sha256(folder) for folder in (base, theirs)])[:16]
    folder = plan.run / "asked" / name
    with lock(folder.with_name(f".{name}.lock"), remove=True):
        if not folder.is_dir():
            with atomic_dir(folder) as part:
                tokens.side_files(base, theirs, part)
    return layouts.Asked(backbone, folder)


def _model(
    plan: Plan, row: str, method: Method, base: Checkpoint, experts: Mapping[str, Checkpoint], vectors: TaskVectors
) -> Checkpoint | None:
    """The one model that a row without a merge is: an expert under the base's names, or any model as it lies there."""
    name = str(plan.entry(row).model)
    if "expert" in method.needs:
        return vectors.checkpoints[name]
    if "model" not in method.needs:
        return None
    return {"base": base, **experts}.get(name) or Checkpoint.open(plan.folder(name))


def merge(
    plan: Plan,
    job: Job,
    out: Path,
    cache: Path,
    progress: bool = False,
    engine: EngineOptions | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> dict[str, Any]:
    """Merge a row into the checkpoint folder ``out`` and return its report (a JSON value).

    Learned methods keep calibration sets and fits under ``cache``, resume them after a kill, and write
    ``coefficients.json`` and ``history.json`` beside ``out``; ``engine`` says what a fit may use of the machine. A
    merge that was killed goes on at its first unfinished shard. The same arguments give the same bytes.
    """
    made = merging(plan, job, cache, progress, engine)
    context, owner = made.context, plan.profile.models.tokenizer
    options, like = context.options.model_dump(), context.engine.like
    sha256 = row_sha256(plan, job.row, context.engine)
    result = made.run()
    with tempfile.TemporaryDirectory() as name:
        side = result.like
        if owner is not None:
            tokens.side_files(side.configured, plan.folder(owner), Path(name))
            side = side.with_side_files(Path(name))
        made.write(result, out, _card(plan, job, sha256, options, like), side, shard_bytes)
    report = {
        "row": job.row,
        "method": made.method.name,
        "seed": job.seed,
        "scale": result.scale,
        "recipe_sha256": sha256,
        "base_sha256": context.base.sha256(),
        "experts_sha256": {name: expert.sha256() for name, expert in context.task_vectors.checkpoints.items()},
        "model_sha256": Checkpoint.open(out).sha256(),
        "merged_tensors": len(context.task_vectors.names),
    }
    if like is not None:
        report |= {"like": like, "options": options}
    return report | (save_learned(result.learned, out.parent) if result.learned is not None else {})


def row_sha256(plan: Plan, row: str, engine: EngineOptions | None = None) -> str:
    """Hash of the values that a row is merged with, wherever they were written; ``engine``: where not the profile's."""
    profile, samples = plan.profile, plan.calibration(row).model_dump()
    models = {"base": profile.models.base, **profile.models.experts}
    given = [plan.entry(row).content, plan.settings(row).model_dump(), models, samples, profile.device]
    fits = (engine or profile.fits.engine).identity
    return sha256_json([*given, profile.models.tokenizer, fits])


def _card(plan: Plan, job: Job, sha256: str, options: dict[str, Any], like: str | None) -> str:
    """The merged model's card: what it was made from, and how; ``options`` where they are not the row's own."""
    entry, models = plan.entry(job.row), plan.profile.models
    listed = "\n".join(f"- {name}: `{path}`" for name, path in models.experts.items())
    return (
        f"# {entry.label}\n\nMade by emkit, row `{job.row}` (method `{entry.method}`, seed {job.seed}) of the profile "
        f"`{plan.profile.name}/{plan.profile.backbone}`, sha256 `{sha256}`.\n\nBase: `{models.base}`\n\n"
        f"Experts:\n\n{listed}\n"
        + (f"\nOptions, as `--like {like}` sets them: `{json.dumps(options)}`\n" if like else "")
    )
