"""``python -m eval …``: the steps behind a table, one sub-command each. `make` and Snakefile call these."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from emkit.alignment import options as engine
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
        about_table = "a table's name, such as table1, or a YAML file of its own"
        sub.add_argument("table", help=about_table, **({"nargs": "+"} if several else {}))
        for argument in extra:
            sub.add_argument(argument)
        sub.add_argument("--profile", default="mini", help="a profile's name (mini, smoke, paper), folder or YAML file")
        sub.add_argument("--results", default="results", help="the folder of all profiles' results")
        sub.set_defaults(call=call)
        return sub

    step("plan", _plan, "list the jobs behind the table; runs nothing")
    step("explain", _explain, "the options of one row, each with its value and where that is from", "row")
    run = step("reproduce", _reproduce, "run whatever is missing, then publish table and notebook", several=True)
    run.add_argument("--jobs", type=int, default=2, help="jobs at once, one thread each")
    run.add_argument("--max-usd", help="the most that a paid judge may cost, in dollars (or EMKIT_MAX_USD)")
    merge = step("merge", _merge, "merge one row into a checkpoint folder and keep it", "row")
    merge.add_argument("--out", type=Path, required=True)
    merge.add_argument("--seed", type=int, help="default: the row's first")
    merge.add_argument("--scale", type=float, help="λ, for a method with a free scale (default: the one chosen)")
    merge.add_argument("--cache", type=Path, help="where calibration sets and fits are kept (default: beside --out)")
    merge.add_argument("--shard-size", default="5GB", help="largest file of weights (default: 5GB)")
    engine.add_arguments(merge)
    step("zoo", _zoo, "make sure that the profile's models are there").add_argument("--stamp", type=Path, required=True)
    data = step("data", _data, "write a split's benchmark files")
    data.add_argument("--split", choices=("evaluation", "validation"), required=True)
    data.add_argument("--out", type=Path, help="another folder for them than the profile's own")
    step("curve", _curve, "score a row on the validation split at every scale of the grid", "row")
    step("scale", _scale, "choose a row's scale from its points", "row")
    step("row", _row, "merge and score one row", "row", "seed")
    step("table", _table, "write the table from the score files")
    notebook = step("notebook", _notebook, "execute tables' notebooks, or any of notebooks/ by its name", several=True)
    notebook.add_argument("-p", dest="parameters", action="append", default=[], metavar="NAME=VALUE")
    steps.add_parser("judge", help="serve the judge, or `judge estimate TABLE`: its cost")
    return parser


def _load(options):
    from eval.plan import Plan

    return Plan(options.table, options.profile, options.results)


def _known(plan, row: str) -> str:
    runs = [*dict.fromkeys([job.row for job in plan.jobs] + plan.scale_rows)]
    if row not in runs:
        raise UserError(f"unknown row '{row}': {plan.path} runs {', '.join(runs)}")
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
    from eval.summary import expanded

    plans, _ = expanded([options.table], options.profile, options.results)
    print("\n".join(map(listing, plans)), end="")


def _explain(options) -> None:
    from eval.listing import explained

    plan = _load(options)
    print(explained(plan, _known(plan, options.row)), end="")


def _reproduce(options) -> int:
    from eval.judge.spending import set_cap
    from eval.pipeline import reproduce
    from eval.summary import expanded

    set_cap(options.max_usd)
    if options.jobs < 1:
        raise UserError(f"--jobs is {options.jobs}; it must be 1 or more")
    plans, summaries = expanded(options.table, options.profile, options.results)
    return reproduce(plans, options.jobs, summaries)


def _merge(options) -> None:
    from emkit.own import resources
    from eval import merging
    from eval.places import Job

    plan, out = _load(options), resources.place(options.out)
    seed = plan.seeds(_known(plan, options.row))[0] if options.seed is None else options.seed
    scale = plan.chosen_scale(options.row) if options.scale is None else options.scale
    cache, use = options.cache or out.parent / ".cache", engine.from_arguments(options)
    needed = [cache, plan.path, plan.profile_path]
    models = [Path(name) for name in plan.profile.checkpoints.values()]
    resources.check_writable(out, True, models, resources.by_merge_row, needed)
    job, shard = Job(options.row, seed, scale=scale), engine.parse_bytes(options.shard_size)
    report = merging.merge(plan, job, out, cache, progress=True, engine=use, shard_bytes=shard)
    print(json.dumps(report, indent=1, sort_keys=True))


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
    from eval.places import Job
    from eval.rows import run_job

    plan = _load(options)
    seeds = [str(seed) for seed in plan.seeds(_known(plan, options.row))]
    if options.seed not in seeds:
        raise UserError(f"{options.row} runs with seed {', '.join(seeds)}, not {options.seed}")
    run_job(_ready(plan, "evaluation", options.row), Job(options.row, int(options.seed)))


def _table(options) -> None:
    from eval import figures, render, table
    from eval.summary import Summary

    if table.load(options.table).averages:
        print(Summary(options.table, options.profile, options.results).write())
        return
    plan = _load(options)
    figures.save(figures.heatmap(plan, render.entries(plan)), plan.csv.with_suffix(".png"))
    render.write(plan)


def _notebook(options) -> None:
    from eval import notebooks
    from eval.pipeline import publish
    from eval.plan import Plan

    given = {}
    for pair in options.parameters:
        name, separator, value = pair.partition("=")
        if not separator:
            raise UserError(f"-p {pair}: write NAME=VALUE")
        given[name] = value
    for name in options.table:
        if (notebooks.FOLDER / f"{name}.ipynb").is_file():
            print(notebooks.execute_file(name, options.profile, options.results, given))
            continue
        plan = Plan(name, options.profile, options.results)
        notebooks.execute(plan, given)
        if not given:
            publish(plan)


if __name__ == "__main__":
    sys.exit(main())
