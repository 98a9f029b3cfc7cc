"""``make plan-table1``: the jobs behind a table, written out with every value they run with."""

from __future__ import annotations

import json

from emkit.methods import AUTHORS_ONE
from eval.plan import EVALUATION, VALIDATION, Plan


def listing(plan: Plan) -> str:
    """One paragraph per stage; needs neither models nor network."""
    recipe, benchmarks = plan.recipe, plan.protocol["benchmarks"]
    points = [point for row in plan.scale_rows for point in plan.points(row)]
    lines = [
        f"{plan.paper.title}, profile {recipe.profile}, backbone {recipe.backbone}, recipe {plan.path}",
        "",
        f"models: {recipe.data.get('zoo') or 'as they are'}",
        *(f"  {role:<18} {recipe.model(role)}" for role in _roles(plan)),
        "",
        f"data: {'validation and ' if points else ''}evaluation items ({recipe.data['protocol']})",
        *(
            f"  {name:<18} {_asked_as(benchmarks[name]):<22} {_items(plan, benchmarks[name], bool(points))}"
            for name in plan.benchmarks
        ),
        "",
        f"scale: {len(points)} jobs" + (f" ({recipe.data['scale']['rule']})" if points else ", every scale is given"),
        *(f"  {point.name}" for point in points),
        "",
        f"rows: {len(plan.jobs)} jobs, {len(plan.jobs) * len(plan.benchmarks)} cells",
        *(f"  {job.name:<22} {_row(plan, job.row)}" for job in plan.jobs),
        *(f"  {row + '/-':<22} not run yet" for row in plan.rows if not plan.runs(row)),
        "",
        *_settings(plan),
        "",
        f"table and notebook: {plan.home / 'tables'}, {plan.home / 'notebooks'}",
    ]
    return "\n".join(lines) + "\n"


def _asked_as(settings: dict) -> str:
    """The harness's own name of a benchmark: its data set, or its task."""
    return settings.get("harness_dataset") or f"{settings['harness']} {settings['task']}"


def _roles(plan: Plan) -> list[str]:
    models = plan.recipe.data["models"]
    return ["base", *models["experts"], *(["mixture"] if models.get("mixture") else [])]


def _items(plan: Plan, settings: dict, with_validation: bool) -> str:
    counts = {EVALUATION: settings["n"]} | ({VALIDATION: settings["validation_n"]} if with_validation else {})
    text = ", ".join(f"{split} {n}" for split, n in counts.items())
    return text + f", at most {settings['max_new_tokens']} new tokens" + (", judged" if settings["judge"] else "")


def _row(plan: Plan, row: str) -> str:
    entry, source = plan.rows[row], plan.scale_row(row)
    values = {"method": entry["method"], "model": entry.get("model"), "scale": entry.get("scale")}
    if source:
        values["scale"] = "chosen on its own validation curve" if source == row else f"that of {source}"
    elif plan.method(row).scale_from == AUTHORS_ONE:
        values["scale"] = f"{plan.settings(row)['scale']:g} (its authors fix it at 1)"
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def _settings(plan: Plan) -> list[str]:
    """The settings of the rows whose methods have any, once a row."""
    runs = [row for row in plan.rows if plan.runs(row)]
    learned = any(plan.method(row).learned for row in runs)
    lines = ["calibration: " + _values(plan.recipe.data["calibration"])] if learned else []
    return lines + [f"{row}: {_values(settings)}" for row in runs if (settings := plan.settings(row))]


def _values(settings: dict) -> str:
    return ", ".join(
        f"{key} {value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items()
    )
