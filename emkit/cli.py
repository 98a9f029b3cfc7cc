"""``emkit …``: zoos, single merges, layer importance and what the methods are, on the command line."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from emkit.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one ``emkit`` command; returns its exit status."""
    return run(_parser(), arguments)


def run(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> int:
    """Call what the chosen sub-command names as ``call``; a :class:`UserError` is one line on stderr and status 2."""
    options = parser.parse_args(arguments)
    try:
        return options.call(options) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="emkit", description="Merge expert models (Expert Merging, arXiv 2509.25712)."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    zoo = commands.add_parser("zoo", help="train the miniature models, or compare two zoos")
    actions = zoo.add_subparsers(required=True, metavar="ACTION")
    build = actions.add_parser("build", help="train a zoo from nothing; goes on where it was interrupted")
    build.add_argument("name", help="a recipe of emkit/recipes/zoo, such as internvl-mini")
    build.add_argument("--out", type=Path, required=True, help="folder of the finished models")
    build.add_argument("--against", type=Path, help="committed models whose skills to compare with")
    build.add_argument("--jobs", type=int, default=2, help="models trained at once")
    build.set_defaults(call=_zoo_build)
    check = actions.add_parser("check", help="check the models' hashes against their cards")
    check.add_argument("folder", type=Path)
    check.set_defaults(call=_zoo_check)

    row = commands.add_parser("merge-row", help="merge one row of a recipe into a checkpoint folder")
    row.add_argument("recipe")
    row.add_argument("row")
    row.add_argument("--out", type=Path, required=True)
    row.add_argument("--seed", type=int, default=0)
    row.add_argument("--scale", type=float, help="λ, for a method with a free scale")
    row.add_argument("--cache", type=Path, help="where calibration sets and fits are kept (default: beside --out)")
    row.set_defaults(call=_merge_row)

    importance = commands.add_parser("importance", help="layer importance and chunk counts (Section 3.3, Eq. 4)")
    importance.add_argument("recipe")
    importance.add_argument("coefficients", type=Path, help="coefficients.json of an Expert Merging run")
    importance.set_defaults(call=_importance)

    explain = commands.add_parser("explain", help="a method's formula, options and sources; alone: all methods")
    explain.add_argument("method", nargs="?", help="a method's name; none lists them all")
    explain.add_argument("--recipe", help="show the values that this recipe gives the method, with their sources")
    explain.set_defaults(call=_explain)

    plan = commands.add_parser("plan", help="list a recipe's rows")
    plan.add_argument("recipe")
    plan.set_defaults(call=_plan)
    return parser


def _zoo_build(options) -> int:
    from emkit.zoo import build
    from emkit.zoo.compare import compare

    recipe = build.load_recipe(options.name)
    build.build(recipe, options.out, options.out / ".work", options.jobs)
    if options.against is None:
        return 0
    own = {member: build.own_subtasks(recipe, member) for member in build.members(recipe)}
    table, agrees = compare(options.out, options.against, own)
    print(table)
    return 0 if agrees else 1


def _zoo_check(options) -> int:
    from emkit.checkpoints import Checkpoint
    from emkit.zoo import card

    folders = sorted(path.parent for path in options.folder.glob("*/card.json"))
    if not folders:
        raise UserError(f"there is no zoo in {options.folder}")
    for folder in folders:
        if Checkpoint.open(folder).sha256() != card.read(folder)["weights_sha256"]:
            raise UserError(f"{folder}: the weights are not those of its card; `git checkout` them again")
        print(f"{folder}: weights are those of its card")
    return 0


def _merge_row(options) -> None:
    from emkit import methods, recipe

    cache = options.cache or options.out.parent / ".cache"
    report = methods.merge_row(
        recipe.load(options.recipe), options.row, options.seed, options.out, cache, options.scale, progress=True
    )
    print(json.dumps(report, indent=1, sort_keys=True))


def _importance(options) -> None:
    from emkit import backbones, recipe
    from emkit.checkpoints import Checkpoint
    from emkit.coefficients import Coefficients
    from emkit.importance import allocate_chunks, layer_importance
    from emkit.task_vectors import TaskVectors

    loaded = recipe.load(options.recipe)
    settings = loaded.data["methods"]["expert_merging_pp"]
    experts = {name: Checkpoint.open(path) for name, path in loaded.experts.items()}
    names = backbones.get(loaded.backbone).merged_names
    vectors = TaskVectors(Checkpoint.open(loaded.model("base")), experts, names)
    found = layer_importance(Coefficients.load(options.coefficients), vectors, settings.get("normalise", "per_expert"))
    chunks = allocate_chunks(found, settings["budget"], settings["kappa"])
    for name in sorted(found, key=found.get, reverse=True):
        print(f"{found[name]:.4f} {chunks[name]:>3} {name}")


def _explain(options) -> None:
    from emkit import explain, recipe

    if options.method is None:
        if options.recipe is not None:
            raise UserError("--recipe needs a METHOD before it: `emkit explain` alone lists them")
        print(explain.methods())
        return
    loaded = recipe.load(options.recipe) if options.recipe is not None else None
    print(explain.method(options.method, loaded))


def _plan(options) -> None:
    from emkit import recipe

    for row in recipe.load(options.recipe).rows:
        print(f"{row['id']:<20}{row['label']:<40}{row['method'] or 'not run yet'}")


if __name__ == "__main__":
    sys.exit(main())
