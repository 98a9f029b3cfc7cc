"""What the table notebook shows: a plan's scores, restricted to the rows, columns and pairs that a reader asks for.

Only score files are read; what does not stand yet is "not run yet" everywhere, so a run under way can be looked at.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cached_property
from pathlib import Path

from emkit.errors import UserError
from emkit.schema import nearest
from eval import claims, comparisons, conclusion, figures, render, sweeps
from eval.plan import Plan
from eval.style import Picture
from eval.table import published


class View:
    """A table as it stands. ``rows`` (ids or labels), ``columns`` and ``pairs`` (``first:second``) are separated by
    commas; empty means all of them, for ``pairs`` those that the table compares. An average is always that of all the
    table's columns. ``UserError`` for a name that the table has not, and where it has no score at all."""

    def __init__(
        self,
        table: str,
        profile: str = "mini",
        results: str = "results",
        rows: str = "",
        columns: str = "",
        pairs: str = "",
    ):
        self.plan = plan = Plan(table, profile, results)
        self.rows = [_row(plan, name) for name in _names(rows)] or list(plan.rows)
        self.columns = [_known(name, plan.benchmarks, "column", plan) for name in _names(columns)] or plan.benchmarks
        self.pairs = [_pair(plan, text) for text in _names(pairs)] or plan.table.pairs
        self.all_lines = _standing(plan)

    @property
    def labels(self) -> list[str]:
        """The names of the rows that are shown."""
        return [self.plan.rows[row].label for row in self.rows]

    @cached_property
    def lines(self) -> list[render.Entry]:
        """The lines of the rows and columns that are shown."""
        cells, columns = render.grid(self.all_lines), [*self.columns, render.AVERAGE]
        return [cells[label][name] for label in self.labels for name in columns]

    @cached_property
    def compared(self) -> list[dict]:
        """The pairs on every column that is shown and on the average (:func:`eval.comparisons.compare`)."""
        found = self._all if self.pairs == self.plan.table.pairs else comparisons.compare(self.plan, self.pairs)
        return [each for each in found if each["benchmark"] in (*self.columns, render.AVERAGE)]

    @cached_property
    def _all(self) -> list[dict]:
        """The table's own pairs on every column."""
        return comparisons.compare(self.plan, self.plan.table.pairs)

    # ---- in Markdown
    def heading(self) -> str:
        """The table's name, subject and profile."""
        plan = self.plan
        return f"# {plan.table.title}: {plan.table.about}\n\nProfile **{plan.profile.name}**. {self.say('models')}"

    def say(self, name: str) -> str:
        """A paragraph that holds for this table alone, from its YAML file or the profile's, which goes before; empty
        where neither has one of that name."""
        return self.plan.profile.prose.get(name) or self.plan.table.prose.get(name, "")

    def conclusion(self) -> str:
        """What the scores say (:mod:`eval.conclusion`)."""
        return conclusion.text(self.plan, self.all_lines, comparisons.compare(self.plan, self.pairs), self.pairs)

    def ours(self) -> str:
        """Our table, and which columns are whose."""
        own: dict[str, list[str]] = {}
        for name in self.columns:
            own.setdefault(self.plan.experts.get(name, "no expert"), []).append(name)
        of = "; ".join(f"{expert}: {', '.join(names)}" for expert, names in own.items())
        heads = f"`{render.AVERAGE}` is the unweighted mean of all the table's columns. Whose columns they are: {of}."
        return f"{render.ours(self.lines, self.plan.table)}\n\n{heads}"

    def published(self) -> str:
        """The paper's table, and its averages beside ours."""
        plan = self.plan
        if plan.table.published is None:
            return "There is no published table beside this one."
        beside = render.averages(self.lines, plan.table, plan.profile.name)
        theirs = render.theirs(plan.table, self._published_labels(), self.columns)
        return f"{beside}\n\n{plan.table.published.models}, all columns:\n\n{theirs}"

    def _published_labels(self) -> Collection[str]:
        return [label for label in published(self.plan.table) if label in self.labels] or self.labels

    def verdicts(self) -> str:
        """The averages' comparisons with the paper's differences beside them."""
        plan, found = self.plan, comparisons.verdicts(self.compared)
        theirs = {comparisons.named(plan, pair): comparisons.published_difference(plan, pair) for pair in self.pairs}
        if not found:
            return "This table compares no rows."
        shown = [
            {"rows": each["rows"], "delta": each["delta"], "interval": comparisons.interval(each), "holm": each["holm"]}
            | {"paper": theirs[each["rows"]], "verdict": each["verdict"]}
            for each in found
        ]
        return f"{comparisons.as_markdown(shown)}\n\n{self.say('compared')}"

    def seeds(self) -> str:
        """What another calibration draw changes."""
        plan = self.plan
        learned = [row for row in self.rows if plan.runs(row) and plan.method(row).learned]
        return comparisons.as_markdown(comparisons.seed_intervals(plan, plan.table.learned or learned))

    def claims(self) -> str:
        """What the paper says of the table, and what ours shows of it."""
        return claims.summary(self.plan, self._all)

    def judged(self) -> str:
        """The claims with the numbers behind their verdicts."""
        found = claims.judged(self.plan, self._all)
        return (
            comparisons.as_markdown(found) if found else "The paper makes no claim on this table that is listed here."
        )

    def ran_with(self) -> str:
        """What each row ran with."""
        found = [line for line in sweeps.ran_with(self.plan) if line["row"] in self.labels]
        return f"{self.say('rows')}\n\n{comparisons.as_markdown(found)}"

    def reach(self) -> str:
        """Who leads each column, and what merging can reach."""
        found = [each for each in comparisons.reach(self.plan, self.all_lines) if each["benchmark"] in self.columns]
        return f"{self.say('reach')}\n\n{comparisons.as_markdown(found)}"

    def scales(self) -> str:
        """What task vectors were scaled by."""
        return render.scales(self.plan)

    # ---- drawn
    def heatmap(self) -> Picture:
        """The scores, coloured by how far each has come from the base to the expert."""
        return figures.heatmap(self.plan, self.all_lines, self.rows, self.columns)

    def differences(self) -> Picture:
        """The pairs that are two rows, column by column."""
        return figures.differences(self.compared, f"Paired differences, profile {self.plan.profile.name}")

    def main_figure(self) -> Picture:
        """The figure that stands beside the table."""
        return figures.of_table(self.plan, self.all_lines)

    def scale_curves(self) -> Picture:
        """How the free scales were chosen, of the rows that are shown."""
        return figures.scale_curves(self.plan, self.rows)

    def learned(self) -> Picture:
        """The coefficients of the first learned row."""
        return figures.learned(self.plan)


def _standing(plan: Plan) -> list[render.Entry]:
    """Every line of the table; where nothing stands yet, the error also names the executed notebook that is there."""
    try:
        return render.entries(plan)
    except UserError as error:
        executed = plan.home / "notebooks" / f"{plan.name}.ipynb"
        raise UserError(f"{error}{_or_look(executed)}") from error


def _or_look(executed: Path) -> str:
    return f"; until then, {executed} is one that was run" if executed.is_file() else ""


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _row(plan: Plan, name: str) -> str:
    """The id of a row that is given by id or label."""
    labels = {row.label: row.id for row in plan.rows.values()}
    return labels.get(name) or _known(name, plan.rows, "row", plan)


def _known(name: str, known: Iterable[str], kind: str, plan: Plan) -> str:
    if name not in known:
        raise UserError(f"{plan.table.title} has no {kind} '{name}': {nearest(name, known)}")
    return name


def _pair(plan: Plan, text: str) -> list[str]:
    pair = [part.strip() for part in text.split(":")]
    if len(pair) != 2:
        raise UserError(f"'{text}' is not a pair of rows: write first:second, such as expert_merging:task_arithmetic")
    return [_row(plan, name) for name in pair]
