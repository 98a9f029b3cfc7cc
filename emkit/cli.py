"""``emkit …``: merges of one's own models, rows of the paper's tables, zoos and what the methods are."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

try:
    import click

    from emkit import __version__, bench
    from emkit.alignment.options import parse_bytes
    from emkit.command_line import PATH, Groups, engine, fits, run, writing
    from emkit.errors import UserError
    from emkit.own import cli as own
except ModuleNotFoundError as missing:
    from emkit.errors import not_installed

    sys.exit(not_installed(missing))

OWN, TABLES, SPEED = "Merge your own models", "The paper's tables", "Speed and memory"


@click.group(cls=Groups)
@click.version_option(__version__, message="emkit %(version)s")
def app() -> None:
    """Merge expert models into one: by learned coefficients (Expert Merging, arXiv 2509.25712) or by simpler methods.

    A first merge, in three lines:

    \b
      emkit init merge.yaml --base models/base --expert math=models/math --expert code=models/code
      emkit merge merge.yaml
      emkit coefficients show merged

    The first writes a recipe that explains itself. A method that needs no prompts takes one line:

    \b
      emkit merge --base models/base --expert models/math --expert models/code --method ties --out merged

    `emkit COMMAND --help` says more of one.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one ``emkit`` command; returns its exit status."""
    return run(app, arguments, "emkit")


@click.command
@click.argument("method", required=False)
@click.option("--recipe", help="Show the values that this recipe gives the method, with their sources.")
def explain(method: str | None, recipe: str | None) -> None:
    """What a method does: formula, options, where defaults are from.

    Without METHOD, a list of them.
    """
    from emkit import explain
    from emkit import recipe as recipes

    if method is None:
        if recipe is not None:
            raise UserError("--recipe needs a METHOD before it: `emkit explain` alone lists them")
        print(explain.methods())
        return
    print(explain.method(method, recipes.load(recipe) if recipe is not None else None))


@click.command
@click.argument("recipe")
def plan(recipe: str) -> None:
    """List a recipe's rows."""
    from emkit import recipe as recipes

    for row in recipes.load(recipe).rows:
        print(f"{row['id']:<20}{row['label']:<40}{row['method'] or 'not run yet'}")


@click.command("merge-row")
@click.argument("recipe")
@click.argument("row")
@click.option("--out", type=PATH, required=True, help="The folder to write.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--scale", type=float, metavar="λ", help="For a method with a free scale.")
@writing
@fits
def merge_row(recipe: str, row: str, out: Path, seed: int, scale: float | None, **flags: Any) -> None:
    """Merge one row of a recipe into a checkpoint folder."""
    from emkit import methods
    from emkit import recipe as recipes
    from emkit.own import resources

    loaded, out = recipes.load(recipe), resources.place(out)
    loaded.row(row)
    cache = flags["cache"] or out.parent / ".cache"
    use, shard = engine(flags), parse_bytes(flags["shard_size"])
    models = [loaded.model("base"), *loaded.experts.values(), *filter(None, [loaded.data["models"].get("mixture")])]
    resources.check_writable(out, True, map(Path, models), resources.by_merge_row, [cache, Path(recipe)])
    report = methods.merge_row(loaded, row, seed, out, cache, scale, progress=True, engine=use, shard_bytes=shard)
    print(json.dumps(report, indent=1, sort_keys=True))


@click.command
@click.argument("recipe")
@click.argument("coefficients", type=PATH)
def importance(recipe: str, coefficients: Path) -> None:
    """Layer importance and chunk counts (Eq. 4).

    COEFFICIENTS is the coefficients.json of an Expert Merging run (Section 3.3).
    """
    from emkit import backbones
    from emkit import recipe as recipes
    from emkit.alignment.importance import allocate_chunks, layer_importance
    from emkit.checkpoints import Checkpoint
    from emkit.coefficients import Coefficients
    from emkit.task_vectors import TaskVectors

    loaded = recipes.load(recipe)
    settings = loaded.data["methods"]["expert_merging_pp"]
    experts = {name: Checkpoint.open(path) for name, path in loaded.experts.items()}
    names = backbones.get(loaded.backbone).merged_names
    vectors = TaskVectors(Checkpoint.open(loaded.model("base")), experts, names)
    found = layer_importance(Coefficients.load(coefficients), vectors, settings.get("normalise", "per_expert"))
    chunks = allocate_chunks(found, settings["budget"], settings["kappa"])
    for name in sorted(found, key=found.get, reverse=True):
        print(f"{found[name]:.4f} {chunks[name]:>3} {name}")


@click.group(cls=Groups)
def zoo() -> None:
    """Train the miniature models, or compare two zoos."""


@zoo.command("build")
@click.argument("name")
@click.option("--out", type=PATH, required=True, help="Folder of the finished models.")
@click.option("--against", type=PATH, help="Committed models whose skills to compare with.")
@click.option("--jobs", type=int, default=2, show_default=True, help="Models trained at once.")
def zoo_build(name: str, out: Path, against: Path | None, jobs: int) -> int:
    """Train a zoo from nothing; goes on where it was interrupted.

    NAME is a recipe of emkit/recipes/zoo, such as internvl-mini.
    """
    from emkit.zoo import build
    from emkit.zoo.compare import compare

    recipe = build.load_recipe(name)
    build.build(recipe, out, out / ".work", jobs)
    if against is None:
        return 0
    own = {member: build.own_subtasks(recipe, member) for member in build.members(recipe)}
    table, agrees = compare(out, against, own)
    print(table)
    return 0 if agrees else 1


@zoo.command("check")
@click.argument("folder", type=PATH)
def zoo_check(folder: Path) -> None:
    """Check the models' hashes against their cards."""
    from emkit.checkpoints import Checkpoint
    from emkit.zoo import card

    folders = sorted(path.parent for path in folder.glob("*/card.json"))
    if not folders:
        raise UserError(f"there is no zoo in {folder}")
    for found in folders:
        if Checkpoint.open(found).sha256() != card.read(found)["weights_sha256"]:
            raise UserError(f"{found}: the weights are not those of its card; `git checkout` them again")
        print(f"{found}: weights are those of its card")


for command in (own.init, own.merge, own.coefficients, explain):
    app.under(OWN, command)
for command in (plan, merge_row, importance, zoo):
    app.under(TABLES, command)
app.under(SPEED, bench.bench)

if __name__ == "__main__":
    sys.exit(main())
