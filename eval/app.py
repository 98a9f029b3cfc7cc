"""What the commands of :mod:`eval.__main__` and the steps of :mod:`eval.steps` share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from emkit.command_line import together
from emkit.errors import UserError

if TYPE_CHECKING:
    from eval.plan import Plan

PROFILE = together(
    click.option(
        "--profile", default="mini", show_default=True, help="A profile's name (mini, smoke, paper), or a YAML file."
    ),
    click.option("--results", default="results", show_default=True, help="The folder of all profiles' results."),
)


def of_table(group: click.Group, *arguments: str) -> Callable:
    """A sub-command of ``group`` about one table, with further ``arguments``."""
    return together(group.command, click.argument("table"), *map(click.argument, arguments), PROFILE)


def load(table: str, profile: str, results: str) -> Plan:
    """The plan that a command is about."""
    from eval.plan import Plan

    return Plan(table, profile, results)


def known(plan: Plan, row: str) -> str:
    """The row's id; ``UserError`` for one that the table does not run."""
    runs = [*dict.fromkeys([job.row for job in plan.jobs] + plan.scale_rows)]
    if row not in runs:
        raise UserError(f"unknown row '{row}': {plan.path} runs {', '.join(runs)}")
    return row
