"""The one rule by which a free scale is chosen, for whatever method has one.

For each value of the profile's grid the row is merged and scored on the validation split by the same harness classes as
the table; the value with the best mean over the benchmarks wins, the smaller one on ties. No evaluation item is seen.
"""

from __future__ import annotations

from collections.abc import Mapping

from emkit.alignment.learner import SCALE
from emkit.errors import UserError
from emkit.files import read_json, write_json
from emkit.methods import VALIDATION, Scaled, Started
from eval import keys, scores
from eval.plan import Plan

RULE = "best mean over the benchmarks' validation items, smaller on ties"


def best(curve: Mapping[float, float]) -> float:
    """The scale with the highest mean, the smallest of those that share it."""
    return min(curve, key=lambda scale: (-curve[scale], scale))


def choose(plan: Plan, row: str) -> dict:
    """The chosen scale and the curve behind it; raises ``UserError`` when a point of the grid has no score."""
    curve = []
    for point in plan.points(row):
        cells = [scores.read_cell(plan.needed(plan.cell(point, name))) for name in plan.benchmarks]
        bad = next((cell for cell in cells if cell.status != "ok"), None)
        if bad:
            raise UserError(f"no scale for {row}: {bad.benchmark} at {point.scale} {bad.status}: {bad.reason}")
        by_benchmark = {cell.benchmark: cell.value for cell in cells}
        curve.append(
            {
                "scale": point.scale,
                "mean": sum(value for value in by_benchmark.values() if value is not None) / len(cells),
                "stderr": sum((cell.stderr or 0.0) ** 2 for cell in cells) ** 0.5 / len(cells),
                "benchmarks": by_benchmark,
            }
        )
    scale = best({point["scale"]: point["mean"] for point in curve})
    return {"row": row, "rule": RULE, "scale": scale, "curve": curve}


def write(plan: Plan, row: str) -> None:
    """Choose and record the scale of ``row``."""
    write_json(plan.scale_file(row), choose(plan, row))


def read(plan: Plan, row: str) -> dict:
    """The recorded choice; ``UserError`` where there is none, or none that can be read."""
    path = plan.needed(plan.scale_file(row), "chosen scale")
    try:
        return read_json(path)
    except ValueError as error:
        raise UserError(f"{path} cannot be read: delete it and run `{plan.command}` in {keys.ROOT}") from error


def is_current(plan: Plan, row: str) -> bool:
    """Whether the recorded choice is what the points' scores say now."""
    try:
        return plan.scale_file(row).is_file() and read_json(plan.scale_file(row)) == choose(plan, row)
    except (UserError, ValueError):
        return False


def origins(plan: Plan) -> dict[str, tuple[float | None, str]]:
    """Label of every row that scales task vectors → its scale (None: not chosen yet), and where that is from."""
    return {plan.rows[row].label: found for row in plan.rows if plan.runs(row) and (found := _origin(plan, row))}


def _origin(plan: Plan, row: str) -> tuple[float | None, str] | None:
    method, settings = plan.method(row), plan.settings(row)
    if isinstance(settings, Scaled):
        return settings.scale, "fixed by its authors" if settings.scale == 1 else "given by the recipe"
    if method.scale_from == VALIDATION:
        given = plan.given_scale(row) is not None
        return plan.chosen_scale(row), "given by the recipe" if given else "chosen on its validation curve"
    if not isinstance(settings, Started):
        return None
    initial = settings.initial
    if initial == SCALE:
        return plan.chosen_scale(row), "learned per tensor, starting from Task Arithmetic's"
    single = None if isinstance(initial, Mapping) else float(initial)
    return single, "learned per tensor, starting from the recipe's value"
