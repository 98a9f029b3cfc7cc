"""``emkit …``: merges of one's own models, rows of the paper's tables, zoos and what the methods are."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from emkit import __version__


def _not_installed(error: ModuleNotFoundError) -> int:
    """Say how to get a package that is missing; returns the exit status. A module of ours is a bug, not a package."""
    if str(error.name).partition(".")[0] in ("emkit", "eval"):
        raise error
    print(
        f"error: {sys.executable} has no package '{error.name}': `make setup` builds the environment; then type "
        ".venv/bin/emkit for emkit and .venv/bin/python for python3",
        file=sys.stderr,
    )
    return 2


try:
    from emkit import bench
    from emkit.alignment import options as engine
    from emkit.errors import UserError
    from emkit.own import cli as own
except ModuleNotFoundError as missing:
    sys.exit(_not_installed(missing))

GROUPS = {
    "Merge your own models": {
        **own.COMMANDS,
        "explain": "what a method does: formula, options, where defaults are from",
    },
    "The paper's tables": {
        "plan": "list a recipe's rows",
        "merge-row": "merge one row of a recipe into a checkpoint folder",
        "importance": "layer importance and chunk counts (Section 3.3, Eq. 4)",
        "zoo": "train the miniature models, or compare two zoos",
    },
    "Speed and memory": {"bench": "time fits and merges against other ways of doing them"},
}
_HELP = """\
Merge expert models into one: by learned coefficients (Expert Merging, arXiv 2509.25712) or by simpler methods.

{groups}

A first merge, in three lines:

  emkit init merge.yaml --base models/base --expert math=models/math --expert code=models/code
  emkit merge merge.yaml
  emkit coefficients show merged

The first writes a recipe that explains itself. A method that needs no prompts takes one line:

  emkit merge --base models/base --expert models/math --expert models/code --method ties --out merged

`emkit COMMAND --help` says more of one.
"""


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, with the option that was probably meant."""

    def error(self, message: str):
        if message.startswith("unrecognized arguments: "):
            wrong = message.split(": ", 1)[1].split()[0]
            near = difflib.get_close_matches(wrong.partition("=")[0], sorted(_flags(self)), n=1)
            message = f"unknown option {wrong}" if wrong.startswith("-") else f"'{wrong}' is one argument too many"
            message += f": did you mean {near[0]}?" if near else ""
        if message.startswith("argument COMMAND: invalid choice: "):
            wrong = message.split("'")[1]
            near = difflib.get_close_matches(wrong, [name for group in GROUPS.values() for name in group], n=1)
            message = f"unknown command '{wrong}'" + (f": did you mean '{near[0]}'?" if near else "")
        self.exit(2, f"error: {message} (`{self.prog} --help` says more)\n")


def _flags(parser: argparse.ArgumentParser) -> set[str]:
    """Every option of a parser and of those below it."""
    found = set()
    for action in parser._actions:
        found.update(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            found.update(*map(_flags, action.choices.values()))
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one ``emkit`` command; returns its exit status."""
    return run(_parser(), arguments)


def run(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> int:
    """Call what the chosen sub-command names as ``call``; a :class:`UserError` is one line on stderr and status 2."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    if not given and isinstance(parser, Parser):
        parser.print_help()
        return 0
    options = parser.parse_args(given)
    options.given = given
    try:
        status = options.call(options) or 0
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever read the output has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the interpreter's last flush
        return 1
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        return _not_installed(error)
    except KeyboardInterrupt:
        print("error: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _parser() -> Parser:
    listed = [
        f"{title}:\n" + "\n".join(f"  {name:<14}{about}" for name, about in commands.items())
        for title, commands in GROUPS.items()
    ]
    parser = Parser(
        prog="emkit",
        usage="emkit COMMAND …",
        description=_HELP.format(groups="\n\n".join(listed)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"emkit {__version__}", help=argparse.SUPPRESS)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", help=argparse.SUPPRESS, prog="emkit")
    own.add(commands)

    zoo = commands.add_parser("zoo", description="Train the miniature models, or compare two zoos.")
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

    row = commands.add_parser("merge-row", description="Merge one row of a recipe into a checkpoint folder.")
    row.add_argument("recipe")
    row.add_argument("row")
    row.add_argument("--out", type=Path, required=True)
    row.add_argument("--seed", type=int, default=0)
    row.add_argument("--scale", type=float, help="λ, for a method with a free scale")
    row.add_argument("--cache", type=Path, help="where calibration sets and fits are kept (default: beside --out)")
    engine.add_arguments(row)
    row.add_argument("--shard-size", default="5GB", help="largest file of weights (default: 5GB)")
    row.set_defaults(call=_merge_row)

    importance = commands.add_parser(
        "importance", description="Layer importance and chunk counts (Section 3.3, Eq. 4)."
    )
    importance.add_argument("recipe")
    importance.add_argument("coefficients", type=Path, help="coefficients.json of an Expert Merging run")
    importance.set_defaults(call=_importance)

    explain = commands.add_parser("explain", description="A method's formula, options and sources; alone: all methods.")
    explain.add_argument("method", nargs="?", help="a method's name; none lists them all")
    explain.add_argument("--recipe", help="show the values that this recipe gives the method, with their sources")
    explain.set_defaults(call=_explain)

    plan = commands.add_parser("plan", description="List a recipe's rows.")
    plan.add_argument("recipe")
    plan.set_defaults(call=_plan)

    bench.add_parsers(commands)
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
    from emkit import recipe
    from emkit.methods.row import merge_row
    from emkit.own import resources

    loaded, out = recipe.load(options.recipe), resources.place(options.out)
    loaded.row(options.row)
    cache = options.cache or out.parent / ".cache"
    use, shard = engine.from_arguments(options), engine.parse_bytes(options.shard_size)
    models = [loaded.model("base"), *loaded.experts.values(), *filter(None, [loaded.data["models"].get("mixture")])]
    resources.check_writable(out, True, map(Path, models), resources.by_merge_row, [cache, Path(options.recipe)])
    report = merge_row(
        loaded, options.row, options.seed, out, cache, options.scale, progress=True, engine=use, shard_bytes=shard
    )
    print(json.dumps(report, indent=1, sort_keys=True))


def _importance(options) -> None:
    from emkit import backbones, recipe
    from emkit.alignment.importance import allocate_chunks, layer_importance
    from emkit.checkpoints import Checkpoint
    from emkit.coefficients import Coefficients
    from emkit.task_vectors import TaskVectors

    loaded = recipe.load(options.recipe)
    settings = loaded.method_settings("expert_merging_pp")
    experts = {name: Checkpoint.open(path) for name, path in loaded.experts.items()}
    names = backbones.get(loaded.backbone).merged_names
    vectors = TaskVectors(Checkpoint.open(loaded.model("base")), experts, names)
    found = layer_importance(Coefficients.load(options.coefficients), vectors, settings.normalise)
    chunks = allocate_chunks(found, settings.budget, settings.kappa)
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
