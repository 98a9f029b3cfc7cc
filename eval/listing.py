"""``make plan-table1``: the jobs behind a table, written out with every value they run with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from emkit.config import default
from emkit.methods import VALIDATION as CHOSEN
from emkit.methods import Scaled
from emkit.own.resources import human
from eval import needs, times
from eval.columns.kinds import Column
from eval.judge import estimate
from eval.keys import ROOT
from eval.places import EVALUATION, VALIDATION, Job
from eval.plan import Plan
from eval.scale import RULE


def listing(plan: Plan) -> str:
    """One paragraph per stage; needs neither models nor network."""
    profile, columns = plan.profile, plan.protocol.columns
    points = [point for row in plan.scale_rows for point in plan.points(row)]
    lines = [
        f"{plan.table.title} ({_shown(plan.path)}), profile {profile.name} ({_shown(plan.profile_path)})",
        "",
        f"models: {profile.zoo or 'as they are'}",
        *(f"  {role:<18} {name}" for role, name in profile.checkpoints.items()),
        "",
        f"data: {'validation and ' if points else ''}evaluation items (eval/columns)",
        *(f"  {name:<18} {_asked_as(column):<22} {_items(column, bool(points))}" for name, column in columns.items()),
        "",
        f"scale: {len(points)} jobs" + (f" ({RULE})" if points else ", every scale is given"),
        *(f"  {point.name}" for point in points),
        "",
        f"rows: {len(plan.jobs)} jobs, {len(plan.jobs) * len(plan.benchmarks)} cells",
        *(f"  {job.name:<22} {_row(plan, job.row)}" for job in plan.jobs),
        *(f"  {row + '/-':<22} not run yet" for row in plan.rows if not plan.runs(row)),
        "",
        *_settings(plan),
        "",
        *_costs(plan),
        "",
        f"table and notebook: {plan.home / 'tables'}, {plan.home / 'notebooks'}",
    ]
    return "\n".join(lines) + "\n"


def _costs(plan: Plan) -> list[str]:
    """What is missing, and what that takes of time, memory, disk and dollars, as far as it can be told."""
    stand = sum(plan.is_valid(plan.resolved(job), name) for job in plan.jobs for name in plan.benchmarks)
    lines = [f"missing: {len(plan.jobs) * len(plan.benchmarks) - stand} of these cells"]
    lines.append(f"time: {times.said(plan)}")
    wanted = needs.needs(plan)
    if wanted is None:
        lines.append("memory and disk: told once the models are here (`make doctor` looks at the rest)")
    else:
        lines.append(f"memory: {wanted.said}; disk: {human(wanted.merged)} for each row at once")
    return [*lines, f"judge: at most ${estimate.total(plan):,.2f}"]


def overview(plans: Sequence[Plan]) -> str:
    """A line for each table with what it adds to those above it, and their sum: merges to score, fits, the tokens that
    answers have at most, and what a paid judge may ask for them."""
    seen: set[tuple[str, Job]] = set()
    lines, whole = [], [0, 0, 0, 0.0]
    for plan in plans:
        jobs = [*plan.jobs, *(point for row in plan.scale_rows for point in plan.points(row))]
        new = [job for job in jobs if (plan.backbone, job) not in seen]
        seen |= {(plan.backbone, job) for job in new}
        found = [len(new), _fits(plan, new), sum(_tokens(plan, job) for job in new), estimate.total(plan, new)]
        lines.append(
            _counted(plan.table.title, found, f", {len(jobs) - len(new)} shared" if len(new) < len(jobs) else "")
        )
        whole = [before + more for before, more in zip(whole, found)]
    return "\n".join([*lines, _counted("together", whole, "")]) + "\n"


def _fits(plan: Plan, jobs: Iterable[Job]) -> int:
    """How many times coefficients are fitted; what starts a second fit from its first has two, of which the first may
    be kept from another row."""
    methods = [plan.method(job.row) for job in jobs]
    return sum(2 if "start" in method.options.model_fields else 1 for method in methods if method.learned)


def _tokens(plan: Plan, job: Job) -> int:
    """Tokens that the job's answers have at most."""
    columns = plan.protocol.columns.values()
    return sum((c.n if job.split == EVALUATION else c.validation_n) * c.max_new_tokens for c in columns)


def _counted(title: str, found: Sequence[float], rest: str) -> str:
    jobs, fits, tokens, dollars = found
    answers = f"answers of at most {tokens / 1e6:,.1f} million tokens"
    return f"{title:<9} {jobs:>4} merges to score, {fits:>3} fits, {answers}, judge at most ${dollars:,.2f}{rest}"


def explained(plan: Plan, row: str) -> str:
    """Every option of a row with its value and where that is from: the table, the profile's source, or the default."""
    method, entry = plan.method(row), plan.entry(row)
    lines = [f"{row} ({entry.label}): {method.name}"]
    if method.scale_from == CHOSEN:
        given = plan.given_scale(row)
        lines.append(f"  scale = one of {plan.grid}  ({RULE})" if given is None else f"  scale = {given:g}  (given)")
    for key, value in plan.settings(row).model_dump().items():
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        lines.append(f"  {key} = {shown}  ({_source(plan, row, key)})")
    return "\n".join(lines) + "\n"


def _source(plan: Plan, row: str, key: str) -> str:
    if key in plan.entry(row).options:
        return "given in the row"
    method, sources = plan.method(row), plan.profile.sources
    owners = [name for name in (method.name, method.inherits) if name and key in plan.profile.methods.get(name, {})]
    dotted = f"methods.{owners[0]}.{key}" if owners else ""
    if owners:
        return sources.get(dotted, dotted)
    source = default(method.options.model_fields[key], plan.backbone)[1]
    return f"default: {source}" if source else "default"


def _shown(path: Path) -> Path:
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def _asked_as(column: Column) -> str:
    """The harness's own name of a column: its data set, or its task."""
    return column.source if column.harness == "vlmevalkit" else f"{column.harness} {column.source}"


def _items(column: Column, with_validation: bool) -> str:
    counts = {EVALUATION: column.n} | ({VALIDATION: column.validation_n} if with_validation else {})
    text = ", ".join(f"{split} {n}" for split, n in counts.items())
    return text + f", at most {column.max_new_tokens} new tokens" + (", judged" if column.judge else "")


def _row(plan: Plan, row: str) -> str:
    entry, source = plan.entry(row), plan.scale_row(row)
    values = {"method": entry.method, "model": entry.model, "scale": plan.given_scale(row)}
    if source:
        values["scale"] = "chosen on its own validation curve" if source == row else f"that of {source}"
    elif isinstance(settings := plan.settings(row), Scaled):
        values["scale"] = f"{settings.scale:g} (its authors fix it at 1)"
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def _settings(plan: Plan) -> list[str]:
    """The settings of the rows whose methods have any, once a row."""
    runs = [row for row in plan.rows if plan.runs(row)]
    learned = any(plan.method(row).learned for row in runs)
    calibration = plan.profile.calibration.model_dump(exclude_none=True)
    lines = ["calibration: " + _values(calibration)] if learned else []
    return lines + [f"{row}: {_values(settings)}" for row in runs if (settings := plan.settings(row).model_dump())]


def _values(settings: dict) -> str:
    return ", ".join(
        f"{key} {value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()
    )
