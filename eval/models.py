"""The models that a profile merges: there already, or trained because the profile names a zoo for them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from emkit import backbones, layouts
from emkit.checkpoints import Checkpoint, check_same_headers
from emkit.errors import UserError
from emkit.files import atomic_write
from emkit.own.adapter_files import CONFIG
from emkit.own.adapters import is_adapter
from eval.checkpoints import opened
from eval.plan import Plan

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def folders(plan: Plan) -> list[Path]:
    """The profile's models that are folders here; hub ids (``owner/name``, and no such folder) are not."""
    names = plan.profile.checkpoints.values()
    return [Path(name) for name in names if Path(name).is_dir() or not HUB_ID.fullmatch(name)]


def are_there(plan: Plan) -> bool:
    """Whether every folder holds a finished model, or an adapter."""
    return all(_is_there(folder) for folder in folders(plan))


def _is_there(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("config.json", CONFIG))


def check(plan: Plan) -> None:
    """Look at the models that are here and at the calibration sets, before anything long starts.

    ``UserError`` for a missing, pickled or truncated checkpoint, for merged tensors that differ from the base's in name
    or shape, for NaN, for a task without calibration samples, and for a column that says of pictures what this family
    has no setting for.
    """
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
    there = [folder for folder in folders(plan) if folder not in missing]
    base = Checkpoint.open(plan.profile.models.base) if Path(plan.profile.models.base) in there else None
    backbone = backbones.get(plan.profile.backbone)
    for folder in there:
        label = folder.name
        if base is None:  # to be trained: an adapter cannot be read without it
            if not is_adapter(folder):
                Checkpoint.open(folder).scan(str(folder))
            continue
        checkpoint = opened({label: str(folder)}, base, backbone)[label]
        own = layouts.aligned(base, {label: checkpoint}, backbone)[label]
        check_same_headers(base, own, label, backbone.merged_names(base.names))
        checkpoint.scan(str(folder))
    if any(plan.method(job.row).learned for job in plan.jobs):
        profile = plan.profile
        for expert in profile.models.experts:
            next(profile.calibration.drawn_from(profile.backbone).items(expert, profile.seeds[0]))


def _check_pictures(plan: Plan) -> None:
    backbone = backbones.get(plan.profile.backbone)
    for name, column in plan.protocol.columns.items():
        for key in getattr(column, "pictures", {}):
            if key not in backbone.PICTURES:
                raise UserError(
                    f"{name}: nothing of {backbone.name} reads '{key}': leave it out of the column or profile"
                )


def provide(plan: Plan, stamp: Path) -> None:
    """Train the profile's zoo where models are missing, check that all can be opened, and leave ``stamp``."""
    zoo = plan.profile.zoo
    if zoo is not None and not are_there(plan):
        out = Path(plan.profile.models.base).parent
        command = [sys.executable, "-m", "emkit.cli", "zoo", "build", zoo, "--out", str(out)]
        if subprocess.run(command, check=False).returncode:
            raise UserError(f"training the zoo {zoo} failed")
    check(plan)
    with atomic_write(stamp) as part:
        part.write_text("".join(f"{folder}\n" for folder in folders(plan)), encoding="utf-8")
