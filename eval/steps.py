"""The steps of a run, one sub-command each, as the Snakefile calls them; a person may as well."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from emkit.command_line import PATH
from emkit.errors import UserError
from eval.app import known, load, of_table

steps = click.Group()
step = partial(of_table, steps)


def _ready(plan, split: str, row: str):
    """``UserError`` unless a row's job has what it needs: Snakemake sees to it, somebody who types it may not."""
    plan.needed(plan.manifest(split), "benchmark items")
    source = plan.scale_row(row)
    if split == "evaluation" and source:
        plan.needed(plan.scale_file(source), "chosen scale")
    return plan


@step()
@click.option("--stamp", type=PATH, required=True)
def zoo(table: str, profile: str, results: str, stamp: Path) -> None:
    """Make sure that the profile's models are there."""
    from eval.models import provide

    provide(load(table, profile, results), stamp)


@step()
@click.option("--split", type=click.Choice(["evaluation", "validation"]), required=True)
@click.option("--out", type=PATH, help="Another folder for them than the profile's own.")
def data(table: str, profile: str, results: str, split: str, out: Path | None) -> None:
    """Write a split's benchmark files."""
    from emkit.files import atomic_write
    from eval.items.fetching import placing
    from eval.items.writer import write

    plan = load(table, profile, results)
    out = out or plan.data(split)
    write(plan.protocol, split, out, placing(plan.revisions))
    with atomic_write(out / "key") as part:
        part.write_text(plan.data_key(split), encoding="utf-8")


@step()
def prompts(table: str, profile: str, results: str) -> None:
    """Make the calibration files of a profile whose `prompts` say of which columns."""
    from emkit.files import atomic_write
    from eval import prompts

    plan = load(table, profile, results)
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

    plan = load(table, profile, results)
    for point in plan.points(known(plan, row)):
        run_job(_ready(plan, point.split, point.row), point)


@step("row")
def scale(table: str, row: str, profile: str, results: str) -> None:
    """Choose a row's scale from its points."""
    from eval import scale

    plan = load(table, profile, results)
    scale.write(plan, known(plan, row))


@step("row", "seed")
def row(table: str, row: str, seed: str, profile: str, results: str) -> None:
    """Merge and score one row."""
    from eval.places import Job
    from eval.rows import run_job

    plan = load(table, profile, results)
    seeds = [str(number) for number in plan.seeds(known(plan, row))]
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
    plan = load(table, profile, results)
    figures.save(figures.of_table(plan, render.entries(plan)).figure, plan.csv.with_suffix(".png"))
    table_files.write(plan)
