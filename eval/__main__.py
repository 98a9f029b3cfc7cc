"""``python -m eval …``: the steps behind a table, one sub-command each. `make` and Snakefile call these."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from emkit.cli import run
from emkit.errors import UserError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command; returns its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["judge"]:  # it has a parser of its own: argparse hands no option through
        from eval.judge import cli

        return cli(arguments[1:])
    return run(_parser(), arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m eval", description=__doc__)
    steps = parser.add_subparsers(required=True, metavar="STEP")

    def step(name: str, call, about: str, *extra: str, several: bool = False) -> argparse.ArgumentParser:
        sub = steps.add_parser(name, help=about, description=about)
        about_recipe = "a recipe file, such as emkit/recipes/mini/internvl.yaml"
        sub.add_argument("recipe", help=about_recipe, **({"nargs": "+"} if several else {}))
        for argument in extra:
            sub.add_argument(argument)
        sub.add_argument("--results", default="results", help="the folder of all profiles' results")
        sub.set_defaults(call=call)
        return sub

    step("plan", _plan, "list the jobs behind the table; runs nothing")
    run = step("reproduce", _reproduce, "run whatever is missing, then publish table and notebook", several=True)
    run.add_argument("--jobs", type=int, default=2, help="jobs at once, one thread each")
    run.add_argument("--max-usd", help="the most that a paid judge may cost, in dollars (or EMKIT_MAX_USD)")
    step("zoo", _zoo, "make sure that the recipe's models are there").add_argument("--stamp", type=Path, required=True)
    data = step("data", _data, "write a split's benchmark files")
    data.add_argument("--split", choices=("evaluation", "validation"), required=True)
    data.add_argument("--out", type=Path, help="another folder for them than the profile's own")
    step("curve", _curve, "score a row on the validation split at every scale of the grid", "row")
    step("scale", _scale, "choose a row's scale from its points", "row")
    step("row", _row, "merge and score one row", "row", "seed")
    step("table", _table, "write the table from the score files")
    notebook = step("notebook", _notebook, "execute the tables' notebooks", several=True)
    notebook.add_argument("-p", dest="parameters", action="append", default=[], metavar="NAME=VALUE")
    steps.add_parser("judge", help="serve the judge, or `judge estimate RECIPE`: its cost")
    return parser


def _load(options):
    from eval.plan import Plan

    return Plan(options.recipe, options.results)


def _known(plan, row: str) -> str:
    if row not in plan.rows or not plan.runs(row):
        known = ", ".join(name for name in plan.rows if plan.runs(name))
        raise UserError(f"unknown row '{row}': {plan.path} runs {known}")
    return row


def _ready(plan, split: str, row: str):
    """``UserError`` unless a row's job has what it needs: Snakemake sees to it, somebody who types it may not."""
    plan.needed(plan.manifest(split), "benchmark items")
    source = plan.scale_row(row)
    if split == "evaluation" and source:
        plan.needed(plan.scale_file(source), "chosen scale")
    return plan


def _plan(options) -> None:
    from eval.listing import listing

    print(listing(_load(options)), end="")


def _reproduce(options) -> int:
    from eval.judge.spending import set_cap
    from eval.pipeline import reproduce
    from eval.plan import Plan

    set_cap(options.max_usd)
    if options.jobs < 1:
        raise UserError(f"--jobs is {options.jobs}; it must be 1 or more")
    return reproduce([Plan(recipe, options.results) for recipe in options.recipe], options.jobs)


def _zoo(options) -> None:
    from eval.models import provide

    provide(_load(options), options.stamp)


def _data(options) -> None:
    from emkit.files import atomic_write
    from eval.items.writer import write

    plan = _load(options)
    out = options.out or plan.data(options.split)
    write(plan.protocol, options.split, out)
    with atomic_write(out / "key") as part:
        part.write_text(plan.data_key(options.split), encoding="utf-8")


def _curve(options) -> None:
    from eval.rows import run_job

    plan = _load(options)
    for point in plan.points(_known(plan, options.row)):
        run_job(_ready(plan, point.split, point.row), point)


def _scale(options) -> None:
    from eval import scale

    plan = _load(options)
    scale.write(plan, _known(plan, options.row))


def _row(options) -> None:
    from eval.plan import Job
    from eval.rows import run_job

    plan = _load(options)
    seeds = [str(seed) for seed in plan.seeds(_known(plan, options.row))]
    if options.seed not in seeds:
        raise UserError(f"{options.row} runs with seed {', '.join(seeds)}, not {options.seed}")
    run_job(_ready(plan, "evaluation", options.row), Job(options.row, int(options.seed)))


def _table(options) -> None:
    from eval import figures, tables

    plan = _load(options)
    lines = tables.entries(plan)
    title = f"{plan.paper.title}, profile {plan.recipe.profile}"
    picture = figures.relative_heatmap(lines, figures.column_references(plan, lines), plan.paper.experts, title)
    figures.save(picture, plan.table.with_suffix(".png"))
    tables.write(plan)


def _notebook(options) -> None:
    from eval.notebooks import execute
    from eval.pipeline import publish
    from eval.plan import Plan

    given = {}
    for pair in options.parameters:
        name, separator, value = pair.partition("=")
        if not separator:
            raise UserError(f"-p {pair}: write NAME=VALUE")
        given[name] = value
    for recipe in options.recipe:
        plan = Plan(recipe, options.results)
        execute(plan, given)
        if not given:
            publish(plan)


if __name__ == "__main__":
    sys.exit(main())
