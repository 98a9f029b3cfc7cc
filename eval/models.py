"""The models that a profile merges: there already, or trained because the profile names a zoo for them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from emkit import backbones, layouts, originals
from emkit.checkpoints import Checkpoint, check_same_headers
from emkit.errors import UserError
from emkit.files import atomic_write, read_json, read_kept, sha256_json, write_json
from emkit.own import checks, hub, tokens
from emkit.own.adapter_files import CONFIG
from emkit.own.adapters import is_adapter
from emkit.zoo.subtasks import ADAPTER
from eval import resolved
from eval.checkpoints import opened
from eval.plan import Plan


def folders(plan: Plan) -> list[Path]:
    """The profile's models that are folders here; hub ids (``owner/name``, and no such folder) are not."""
    return [Path(name) for name in plan.profile.checkpoints.values() if not hub.is_id(name)]


def are_there(plan: Plan) -> bool:
    """Whether every folder holds a finished model, or an adapter, and every hub id was fetched."""
    return len(_here(plan)) == len(plan.profile.checkpoints)


def _here(plan: Plan) -> dict[str, Path]:
    """Role → the folder of each model that is here, as it is stored."""
    found = {role: resolved.stored(name, plan.revisions) for role, name in plan.profile.checkpoints.items()}
    ids = {role for role, name in plan.profile.checkpoints.items() if hub.is_id(name)}
    there = {role: folder for role, folder in found.items() if folder is not None and _is_there(folder)}
    return {role: folder for role, folder in there.items() if role not in ids or _is_whole(folder)}


def _is_there(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", CONFIG))


def _is_whole(folder: Path) -> bool:
    """Whether a hub's download has all its weights: a file that was deleted from the cache is fetched again."""
    if is_adapter(folder):
        return (folder / ADAPTER).is_file()
    try:
        Checkpoint.open(folder)
    except UserError:
        return False
    return True


def check(plan: Plan) -> None:
    """Look at the models that are here and at the calibration sets, before anything long starts."""
    check_models(plan)
    check_calibration(plan)


def check_calibration(plan: Plan) -> None:
    """``UserError`` for a task without calibration samples, unless a step of the run makes them."""
    profile = plan.profile
    if profile.prompts is None and any(plan.method(job.row).learned for job in plan.jobs):
        for expert in profile.models.experts:
            next(profile.calibration.drawn_from(profile.backbone).items(expert, profile.seeds[0]))


def check_models(plan: Plan) -> None:
    """``UserError`` for a missing, pickled or truncated checkpoint, for merged tensors that differ from the base's in
    name or shape, for NaN, for what :func:`check_words` finds, and for a column that says of pictures what this family
    has no setting for."""
    _check_pictures(plan)
    missing = [folder for folder in folders(plan) if not _is_there(folder)]
    if missing and plan.profile.zoo is None:
        committed = missing[0].is_relative_to("results/zoo")
        how = (
            f"`git checkout {missing[0].parent}` brings it back"
            if committed
            else f"correct models in {plan.profile_path}"
        )
        raise UserError(f"there is no model at {missing[0]}: {how}")
    here = _here(plan)
    base = Checkpoint.open(plan.folder("base")) if "base" in here else None
    backbone, seen = backbones.get(plan.profile.backbone), plan.run / "checked.json"
    for role, stored in here.items():
        folder, label = plan.folder(role), stored.name if Path(plan.profile.checkpoints[role]).is_dir() else role
        if base is None:  # to be trained or fetched: an adapter cannot be read without it
            if not is_adapter(folder):
                _scan(Checkpoint.open(folder), folder, seen)
            continue
        checkpoint = opened({label: folder}, base, backbone, plan.profile.models.base)[label]
        own = layouts.aligned(base, {label: checkpoint}, backbone)[label]
        check_same_headers(base, own, label, backbone.merged_names(base.names))
        _scan(checkpoint, folder, seen)
    check_words(plan, here)


def _scan(checkpoint: Checkpoint, folder: Path, seen: Path) -> None:
    """Read every tensor, unless these very files were read before and found whole: published models take minutes."""
    key, before = sha256_json(checkpoint.identity()), read_kept(seen, read_json) or []
    if key not in before:
        checkpoint.scan(str(folder))
        write_json(seen, [*before, key])


def check_words(plan: Plan, stored: Mapping[str, Path]) -> None:
    """Look at the small files of models that are here (role → folder, as it is stored): who can be asked as it will be.

    ``UserError`` for a chat without a template, for experts whose logits a fit cannot compare with the base's, and for
    a tokenizer with tokens that the base has no row for. Adapters have what their base has.
    """
    whole = {role: folder for role, folder in stored.items() if not is_adapter(folder)}
    owner = plan.profile.models.tokenizer
    chat = next((name for name, column in plan.protocol.columns.items() if column.needs_template), None)
    for role in whole if owner is None else {owner} & set(whole):
        # an original layout gets its template when it is converted
        if chat is not None and originals.kind(whole[role]) is None and tokens.template(whole[role]) is None:
            raise UserError(
                f"{role} ({plan.profile.checkpoints[role]}) has no chat template, and {chat} is asked as a chat: give "
                "the profile `models.tokenizer: <expert>`, with whose tokenizer and template all models are asked"
            )
    rows = {role: checks.config(folder, role).text.get("vocab_size") for role, folder in whole.items()}
    if any(plan.method(job.row).learned for job in plan.jobs):
        for expert in plan.profile.models.experts:
            if {expert, "base"} <= set(rows):
                way = "leave learned rows out (`leave_out` of the profile)"
                checks.comparable(expert, (rows[expert], rows["base"]), way)
    if owner is not None and {owner, "base"} <= set(whole):
        tokens.check_rows(owner, whole[owner], rows["base"], False)


def _check_pictures(plan: Plan) -> None:
    backbone = backbones.get(plan.profile.backbone)
    for name, column in plan.protocol.columns.items():
        for key in getattr(column, "pictures", {}):
            if key not in backbone.PICTURES:
                raise UserError(
                    f"{name}: nothing of {backbone.name} reads '{key}': leave it out of the column or profile"
                )


def provide(plan: Plan, stamp: Path) -> None:
    """Train the zoo where models are missing, fetch hub ids, check that all can be opened, and leave ``stamp``."""
    zoo = plan.profile.zoo
    if zoo is not None and not are_there(plan):
        out = Path(plan.profile.models.base).parent
        command = [sys.executable, "-m", "emkit.cli", "zoo", "build", zoo, "--out", str(out)]
        if subprocess.run(command, check=False).returncode:
            raise UserError(f"training the zoo {zoo} failed")
    resolved.fetch(plan.profile.checkpoints, plan.revisions, lambda folders: check_words(plan, folders))
    check(plan)
    with atomic_write(stamp) as part:
        part.write_text("".join(f"{folder}\n" for folder in _here(plan).values()), encoding="utf-8")
