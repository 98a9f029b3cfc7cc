"""``python -m eval …``: the steps behind a table, one sub-command each. `make` and Snakefile call these."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

try:
    import click

    from emkit.alignment.options import parse_bytes
    from emkit.command_line import PATH, Groups, engine, fits, run, together, writing
    from emkit.errors import UserError
    from eval.judge.cli import judge
except ModuleNotFoundError as missing:
    from emkit.errors import not_installed

    sys.exit(not_installed(missing))

_PROFILE = together(
    click.option(
        "--profile", default="mini", show_default=True, help="A profile's name (mini, smoke, paper), or a YAML file."
    ),
    click.option("--results", default="results", show_default=True, help="The folder of all profiles' results."),
)


@click.group(cls=Groups)
def app() -> None:
    """The steps behind a table. TABLE is a table's name, such as table1, or a YAML file of its own."""


app.under("Tables", judge)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command; returns its exit status."""
    return run(app, arguments, "python -m eval")


def step(*arguments: str) -> Callable:
    """A sub-command of one table, with further ``arguments``."""
    return together(app.command, click.argument("table"), *map(click.argument, arguments), _PROFILE)


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


def _load(table: str, profile: str, results: str):
    from eval.plan import Plan

    return Plan(table, profile, results)


@app.command
@click.argument("tables", metavar="TABLE...", nargs=-1, required=True)
@_PROFILE
@click.option("--short", is_flag=True, help="A line a table: merges, fits, tokens, the judge's dollars.")
def plan(tables: tuple[str, ...], profile: str, results: str, short: bool) -> None:
    """List the jobs behind the tables; runs nothing."""
    from eval.listing import listing, overview
    from eval.summary import expanded

    plans, _ = expanded(list(tables), profile, results)
    print(overview(plans) if short else "\n".join(map(listing, plans)), end="")


@app.command
@click.argument("tables", metavar="TABLE...", nargs=-1, required=True)
@_PROFILE
def doctor(tables: tuple[str, ...], profile: str, results: str) -> int:
    """Look at what the tables need of this machine; runs nothing, and fetches small files alone."""
    from eval.doctor import report
    from eval.summary import expanded

    return report(expanded(list(tables), profile, results)[0])


@app.command
@click.argument("tables", metavar="TABLE...", nargs=-1, required=True)
@_PROFILE
def status(tables: tuple[str, ...], profile: str, results: str) -> None:
    """What stands of the tables, and what a run is at now."""
    from eval.status import text
    from eval.summary import expanded

    print(text(*expanded(list(tables), profile, results)), end="")


@step()
def show(table: str, profile: str, results: str) -> None:
    """Print the table as it stands, perhaps half done."""
    from eval.summary import standing

    print(standing(table, profile, results))


@step()
@click.option("--jobs", type=click.IntRange(1), default=2, show_default=True, help="Jobs at once, one thread each.")
@click.option("--max-usd", help="The most that a paid judge may cost, in dollars, for each way of asking.")
@click.option("--snakemake", default="", help='Further arguments of Snakemake\'s, such as "--profile slurm".')
def protocols(table: str, profile: str, results: str, jobs: int, max_usd: str | None, snakemake: str) -> int:
    """Score base and experts by each way of asking that the columns have, and say which is nearest to the paper's."""
    from eval.judge.spending import set_cap
    from eval.protocols import compare

    set_cap(max_usd)
    return compare(table, profile, results, jobs, shlex.split(snakemake))


@step("row")
def explain(table: str, row: str, profile: str, results: str) -> None:
    """The options of one row, each with its value and where that is from."""
    from eval.listing import explained

    plan = _load(table, profile, results)
    print(explained(plan, _known(plan, row)), end="")


@app.command
@click.argument("tables", metavar="TABLE...", nargs=-1, required=True)
@_PROFILE
@click.option("--jobs", type=click.IntRange(1), default=2, show_default=True, help="Jobs at once, one thread each.")
@click.option("--max-usd", help="The most that a paid judge may cost, in dollars (or EMKIT_MAX_USD).")
@click.option("--snakemake", default="", help='Further arguments of Snakemake\'s, such as "--profile slurm".')
def reproduce(
    tables: tuple[str, ...], profile: str, results: str, jobs: int, max_usd: str | None, snakemake: str
) -> int:
    """Run whatever is missing, then publish table and notebook."""
    from eval import pipeline
    from eval.judge.spending import set_cap
    from eval.summary import expanded

    set_cap(max_usd)
    plans, summaries = expanded(list(tables), profile, results)
    return pipeline.reproduce(plans, jobs, summaries, shlex.split(snakemake))


@step("row")
@click.option("--out", type=PATH, required=True, help="The folder to write.")
@click.option("--seed", type=int, help="Default: the row's first.")
@click.option("--scale", type=float, metavar="λ", help="For a method with a free scale (default: the one chosen).")
@writing
@fits
def merge(table: str, row: str, profile: str, results: str, out: Path, seed: int | None, scale, **flags) -> None:
    """Merge one row into a checkpoint folder and keep it."""
    from emkit.own import resources
    from eval import merging
    from eval.places import Job

    plan, out = _load(table, profile, results), resources.place(out)
    seed = plan.seeds(_known(plan, row))[0] if seed is None else seed
    cache, use = flags["cache"] or out.parent / ".cache", engine(flags, plan.profile.fits.engine)
    needed = [cache, plan.path, plan.profile_path]
    models = [Path(name) for name in plan.profile.checkpoints.values()]  # a hub id is no folder that could be lost
    resources.check_writable(out, True, models, resources.by_merge_row, needed)
    job, shard = (
        Job(row, seed, scale=plan.chosen_scale(row) if scale is None else scale),
        parse_bytes(flags["shard_size"]),
    )
    report = merging.merge(plan, job, out, cache, progress=True, engine=use, shard_bytes=shard)
    print(json.dumps(report, indent=1, sort_keys=True))


@step()
@click.option("--stamp", type=PATH, required=True)
def zoo(table: str, profile: str, results: str, stamp: Path) -> None:
    """Make sure that the profile's models are there."""
    from eval.models import provide

    provide(_load(table, profile, results), stamp)


@step()
@click.option("--split", type=click.Choice(["evaluation", "validation"]), required=True)
@click.option("--out", type=PATH, help="Another folder for them than the profile's own.")
def data(table: str, profile: str, results: str, split: str, out: Path | None) -> None:
    """Write a split's benchmark files."""
    from emkit.files import atomic_write
    from eval.items.fetching import placing
    from eval.items.writer import write

    plan = _load(table, profile, results)
    out = out or plan.data(split)
    write(plan.protocol, split, out, placing(plan.revisions))
    with atomic_write(out / "key") as part:
        part.write_text(plan.data_key(split), encoding="utf-8")


@step()
def prompts(table: str, profile: str, results: str) -> None:
    """Make the calibration files of a profile whose `prompts` say of which columns."""
    from emkit.files import atomic_write
    from eval import prompts

    plan = _load(table, profile, results)
    if plan.profile.prompts is None:
        raise UserError(f"{plan.profile_path} has no `prompts`: its calibration files are yours to make")
    prompts.make(plan)
    with atomic_write(plan.prompts_stamp) as part:
        part.write_text(f"{prompts.folder(plan)}\n", encoding="utf-8")
    print(prompts.folder(plan))


@step("row")
def curve(table: str, row: str, profile: str, results: str) -> None:
    """Score a row on the validation split at every scale of the grid."""
    from eval.rows import run_job

    plan = _load(table, profile, results)
    for point in plan.points(_known(plan, row)):
        run_job(_ready(plan, point.split, point.row), point)


@step("row")
def scale(table: str, row: str, profile: str, results: str) -> None:
    """Choose a row's scale from its points."""
    from eval import scale

    plan = _load(table, profile, results)
    scale.write(plan, _known(plan, row))


@step("row", "seed")
def row(table: str, row: str, seed: str, profile: str, results: str) -> None:
    """Merge and score one row."""
    from eval.places import Job
    from eval.rows import run_job

    plan = _load(table, profile, results)
    seeds = [str(number) for number in plan.seeds(_known(plan, row))]
    if seed not in seeds:
        raise UserError(f"{row} runs with seed {', '.join(seeds)}, not {seed}")
    run_job(_ready(plan, "evaluation", row), Job(row, int(seed)))


@step()
def table(table: str, profile: str, results: str) -> None:
    """Write the table from the score files."""
    from eval import figures, render, table_files
    from eval import table as tables
    from eval.summary import Summary

    if tables.load(table).averages:
        print(Summary(table, profile, results).write())
        return
    plan = _load(table, profile, results)
    figures.save(figures.of_table(plan, render.entries(plan)).figure, plan.csv.with_suffix(".png"))
    table_files.write(plan)


@step()
@click.option("--number", type=click.IntRange(0), default=0, show_default=True, help="Which item of each benchmark.")
@click.option("--out", type=PATH, help="The PNG to write (default: results/<profile>/contact-sheet.png).")
def sheet(table: str, profile: str, results: str, number: int, out: Path | None) -> None:
    """Draw a contact sheet: a picture of each benchmark, its question and gold answer."""
    from eval import style
    from eval.looking import contact

    plan = _load(table, profile, results)
    style.use()
    out = out or plan.home / "contact-sheet.png"
    contact.save(contact.sheet(plan, number), out)
    print(out)


@app.command
@click.argument("names", metavar="TABLE|NOTEBOOK...", nargs=-1, required=True)
@_PROFILE
@click.option("-p", "given", nargs=2, multiple=True, metavar="NAME VALUE", help="A parameter of the notebook.")
def notebook(names: tuple[str, ...], profile: str, results: str, given: tuple[tuple[str, str], ...]) -> None:
    """Execute tables' notebooks, or any of notebooks/ by its name."""
    from eval import notebooks
    from eval.pipeline import publish

    for name in names:
        if (notebooks.FOLDER / f"{name}.ipynb").is_file():
            print(notebooks.execute_file(name, profile, results, dict(given)))
            continue
        plan = _load(name, profile, results)
        notebooks.execute(plan, dict(given))
        if not given:
            publish(plan, table=False)


@app.command
@_PROFILE
@click.option("--jobs", type=click.IntRange(1), default=2, show_default=True, help="Notebooks at once.")
def notebooks(profile: str, results: str, jobs: int) -> int:
    """Execute every notebook of notebooks/, and that of every table that was run to its end."""
    from eval.all_notebooks import execute

    return execute(profile, results, jobs)


@app.command
@_PROFILE
def figures(profile: str, results: str) -> None:
    """Draw Figures 3 to 5 from what the runs of Tables 1 to 3 learned, and execute their notebook."""
    from eval import notebooks
    from eval.lessons.figure_files import write

    for path in write(profile, results):
        print(f"figure:   {path}")
    print(f"notebook: {notebooks.execute_file('03-importance', profile, results, {})}")


@app.command
@_PROFILE
@click.option("--out", type=PATH, required=True, help="The folder to write.")
def book(profile: str, results: str, out: Path) -> None:
    """Make a site of executed notebooks, tables, methods and API that opens from a plain folder."""
    from eval.book.build import build

    print(build(profile, results, out))


if __name__ == "__main__":
    sys.exit(main())
