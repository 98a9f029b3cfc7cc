"""``python -m eval protocols table3``: which way of asking gives base and experts the scores that the paper has for
them.

The paper names no harness for Mistral. The rows of models that nobody merged are scored by the columns' usual protocol
and by each named one (``protocols:`` in their files), each under a profile of its own, and compared with the published
rows: the nearest way of asking is the one to score merges by (``protocol.named`` of the profile).
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence

import yaml

from emkit.errors import UserError
from emkit.files import atomic_write
from eval import columns, pipeline, scores
from eval import table as tables
from eval.plan import Plan
from eval.table import published

USUAL = "usual"


def compare(table: str, profile: str, results: str, jobs: int, snakemake: Sequence[str] = ()) -> int:
    """Score what is missing, print the comparison, and return the exit status (1: some cell has no score).

    ``snakemake``: further arguments of Snakemake's.
    """
    plan = Plan(table, profile, results)
    plans = {name: of(plan, name) for name in (USUAL, *columns.protocols(plan.benchmarks))}
    if len(plans) == 1:
        raise UserError(f"no column of {plan.path} has a protocol but the usual one: there is nothing to compare")
    if not published(plan.table):
        raise UserError(f"{plan.path} has no published numbers to compare with")
    status = pipeline.reproduce(list(plans.values()), jobs, snakemake=snakemake)
    print(text(plans), end="")
    return status


def of(plan: Plan, name: str) -> Plan:
    """The rows of ``plan`` that are models as they are, asked by the protocol ``name``, as a plan of its own.

    Its table and profile are written below the plan's run folder; models are read at the revisions recorded there.
    """
    folder = plan.run / "protocols" / name
    table = yaml.safe_load(plan.path.read_text(encoding="utf-8"))
    rows = [row for row in table["rows"] if row.get("method") == "checkpoint" and row.get("model") != "mixture"]
    table = {key: table[key] for key in ("title", "about", "backbone", "columns", "published") if key in table}
    given = yaml.safe_load(plan.profile_path.read_text(encoding="utf-8"))
    asked = {**given["protocol"], "named": None if name == USUAL else name}
    about = {"name": f"{plan.profile.name}.{name}", "asked_as": plan.profile.asked_as or plan.profile.name}
    emptied: dict = {"leave_out": [], "sources": {}, "scales": {}, "prompts": None}
    files = {plan.path.name: table | {"rows": rows}, "profile.yaml": given | about | emptied | {"protocol": asked}}
    for file, content in files.items():
        with atomic_write(folder / file) as part:
            part.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    made = Plan(folder / plan.path.name, folder / "profile.yaml", plan.home.parent)
    if plan.revisions.is_file() and not made.revisions.is_file():
        with atomic_write(made.revisions) as part:
            shutil.copyfile(plan.revisions, part)
    return made


def text(plans: dict[str, Plan]) -> str:
    """A line for each row and protocol, with the published one, and the mean distance of each protocol's scores."""
    first = next(iter(plans.values()))
    theirs, names = published(first.table), first.benchmarks
    width = max(len(row.label) for row in first.table.rows)
    shown = max(len("published"), *map(len, plans))
    lines = [f"{'':<{width}}  {'':<{shown}}  {'  '.join(f'{name:>10}' for name in names)}"]
    distances: dict[str, list[float]] = {name: [] for name in plans}
    for row in first.table.rows:
        said = theirs.get(row.label, {})
        lines.append(_line(row.label, "published", [said.get(name) for name in names], width, shown))
        for protocol, plan in plans.items():
            ours = _scores(plan, row)
            lines.append(_line("", protocol, [ours[name] for name in names], width, shown))
            pairs = [(ours[name], said.get(name)) for name in names]
            distances[protocol] += [abs(a - b) for a, b in pairs if a is not None and b is not None]
    means = {name: sum(found) / len(found) for name, found in distances.items() if found}
    for name, mean in means.items():
        lines.append(f"{name}: {mean:.1f} points from the published scores, over {len(distances[name])} of them")
    whole = {name for name in means if len(distances[name]) == max(map(len, distances.values()))}
    if whole:
        nearest = min(whole, key=lambda name: means[name])
        how = "leave `protocol.named` out" if nearest == USUAL else f"`protocol: {{named: {nearest}}}` in the profile"
        lines.append(f"nearest: {nearest} ({how})")
    return "\n".join(lines) + "\n"


def _scores(plan: Plan, row: tables.Row) -> dict[str, float | None]:
    (job,) = [job for job in plan.jobs if job.row == plan.scored(row.id)]
    cells = {name: scores.read_cell(plan.cell(job, name)) for name in plan.benchmarks}
    return {name: cell.value if cell.status == "ok" else None for name, cell in cells.items()}


def _line(label: str, who: str, values: list[float | None], width: int, shown: int) -> str:
    numbers = "  ".join(f"{'-' if value is None else f'{value:.2f}':>10}" for value in values)
    return f"{label:<{width}}  {who:<{shown}}  {numbers}"
