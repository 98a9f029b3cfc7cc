"""``python -m eval …``: what a person asks for, and the steps behind a table (:mod:`eval.steps`)."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

try:
    import click

    from emkit.alignment.options import parse_bytes
    from emkit.command_line import PATH, Groups, engine, fits, run, writing
    from eval.app import PROFILE, known, load, of_table
    from eval.judge.cli import judge
    from eval.steps import steps
except ModuleNotFoundError as missing:
    from emkit.errors import not_installed

    sys.exit(not_installed(missing))


@click.group(cls=Groups)
def app() -> None:
    """Tables and what is behind them. TABLE is a table's name, such as table1, or a YAML file of its own."""


step = partial(of_table, app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command; returns its exit status."""
    return run(app, arguments, "python -m eval")


@app.command
@click.argument("tables", metavar="TABLE...", nargs=-1, required=True)
@PROFILE
@click.option("--short", is_flag=True, help="A line a table: merges, fits, tokens, the judge's dollars.")
def plan(tables: tuple[str, ...], profile: str, results: str, short: bool) -> None:
    """List the jobs behind the tables; runs nothing."""
    from eval.listing import listing, overview
    from eval.summary import expanded

    plans, _ = expanded(list(tables), profile, results)
    print(overview(plans) if short else "\n".join(map(listing, plans)), end="")


@app.command
@click.argument("tables", metavar="TABLE...", nargs=-1, required=True)
@PROFILE
def doctor(tables: tuple[str, ...], profile: str, results: str) -> int:
    """Look at what the tables need of this machine; runs nothing, and fetches small files alone."""
    from eval.doctor import report
    from eval.summary import expanded

    return report(expanded(list(tables), profile, results)[0])


@app.command
@click.argument("tables", metavar="TABLE...", nargs=-1, required=True)
@PROFILE
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


@app.command
@click.argument("table")
@click.argument("profiles", metavar="PROFILE...", nargs=-1, required=True)
@click.option("--results", default="results", show_default=True, help="The folder of all profiles' results.")
def zoos(table: str, profiles: tuple[str, ...], results: str) -> None:
    """Compare a table's rows over zoos of several seeds (profiles mini, mini-seed1, …), each of which was run."""
    from eval import zoos

    plans = zoos.opened(table, profiles, results)
    print(f"{zoos.text(plans)}\nwritten to {zoos.write(plans)}")


@step("row")
def explain(table: str, row: str, profile: str, results: str) -> None:
    """The options of one row, each with its value and where that is from."""
    from eval.listing import explained

    plan = load(table, profile, results)
    print(explained(plan, known(plan, row)), end="")


@app.command
@click.argument("tables", metavar="TABLE...", nargs=-1, required=True)
@PROFILE
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

    plan, out = load(table, profile, results), resources.place(out)
    seed = plan.seeds(known(plan, row))[0] if seed is None else seed
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
@click.option("--number", type=click.IntRange(0), default=0, show_default=True, help="Which item of each benchmark.")
@click.option("--out", type=PATH, help="The PNG to write (default: results/<profile>/contact-sheet.png).")
def sheet(table: str, profile: str, results: str, number: int, out: Path | None) -> None:
    """Draw a contact sheet: a picture of each benchmark, its question and gold answer."""
    from eval import style
    from eval.looking import contact

    plan = load(table, profile, results)
    style.use()
    out = out or plan.home / "contact-sheet.png"
    contact.save(contact.sheet(plan, number), out)
    print(out)


@app.command
@click.argument("names", metavar="TABLE|NOTEBOOK...", nargs=-1, required=True)
@PROFILE
@click.option("-p", "given", nargs=2, multiple=True, metavar="NAME VALUE", help="A parameter of the notebook.")
def notebook(names: tuple[str, ...], profile: str, results: str, given: tuple[tuple[str, str], ...]) -> None:
    """Execute tables' notebooks, or any of notebooks/ by its name."""
    from eval import notebooks
    from eval.pipeline import publish

    for name in names:
        if (notebooks.FOLDER / f"{name}.ipynb").is_file():
            print(notebooks.execute_file(name, profile, results, dict(given)))
            continue
        plan = load(name, profile, results)
        notebooks.execute(plan, dict(given))
        if not given:
            publish(plan, table=False)


@app.command
@PROFILE
@click.option("--jobs", type=click.IntRange(1), default=2, show_default=True, help="Notebooks at once.")
def notebooks(profile: str, results: str, jobs: int) -> int:
    """Execute every notebook of notebooks/, and that of every table that was run to its end."""
    from eval.all_notebooks import execute

    return execute(profile, results, jobs)


@app.command
@PROFILE
def figures(profile: str, results: str) -> None:
    """Draw Figures 3 to 5 from what the runs of Tables 1 to 3 learned, and execute their notebook."""
    from eval import notebooks
    from eval.lessons.figure_files import write

    for path in write(profile, results):
        print(f"figure:   {path}")
    print(f"notebook: {notebooks.execute_file('03-importance', profile, results, {})}")


@app.command
@PROFILE
@click.option("--out", type=PATH, required=True, help="The folder to write.")
def book(profile: str, results: str, out: Path) -> None:
    """Make a site of executed notebooks, tables, methods and API that opens from a plain folder."""
    from eval.book.build import build

    print(build(profile, results, out))


app.add_command(judge)
for command in steps.commands.values():
    app.under("Steps, which Snakemake takes", command)


if __name__ == "__main__":
    sys.exit(main())
