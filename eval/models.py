"""The models that a recipe merges: there already, or trained because the recipe names a zoo for them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from emkit.checkpoints import Checkpoint, check_finite, check_same_headers
from emkit.errors import UserError
from emkit.files import atomic_write
from eval.plan import Plan


def folders(plan: Plan) -> list[Path]:
    """The recipe's models that are folders here; hub ids are not."""
    return [Path(name) for name in _names(plan) if Path(name).is_dir() or name.startswith("results/")]


def _names(plan: Plan) -> list[str]:
    models = plan.recipe.data["models"]
    return [name for name in (models["base"], *models["experts"].values(), models.get("mixture")) if name is not None]


def are_there(plan: Plan) -> bool:
    """Whether every folder holds a finished model."""
    return all((folder / "config.json").is_file() for folder in folders(plan))


def check(plan: Plan) -> None:
    """Look at every header and number of the models that are here, before anything long starts.

    ``UserError`` for a missing, pickled or truncated checkpoint, for tensors that differ from the base's in name or
    shape, and for NaN.
    """
    names = [name for name in _names(plan) if (Path(name) / "config.json").is_file()]
    opened = {name: Checkpoint.open(name) for name in names}
    base = opened.get(plan.recipe.model("base"))
    for name, checkpoint in opened.items():
        if base is not None:
            check_same_headers(base, checkpoint, Path(name).name)
        for tensor in checkpoint.names:
            check_finite(tensor, checkpoint.read(tensor), name)


def provide(plan: Plan, stamp: Path) -> None:
    """Train the recipe's zoo where models are missing, check that all can be opened, and leave ``stamp``."""
    if not are_there(plan):
        if plan.recipe.data.get("zoo") is None:
            missing = next(folder for folder in folders(plan) if not (folder / "config.json").is_file())
            raise UserError(f"there is no model at {missing}: `git checkout` it again, or train it with `make zoo`")
        out = Path(plan.recipe.model("base")).parent
        command = [sys.executable, "-m", "emkit.cli", "zoo", "build", plan.recipe.data.get("zoo"), "--out", str(out)]
        if subprocess.run(command, check=False).returncode:
            raise UserError(f"training the zoo {plan.recipe.data.get('zoo')} failed")
    check(plan)
    with atomic_write(stamp) as part:
        part.write_text("".join(f"{folder}\n" for folder in folders(plan)), encoding="utf-8")
