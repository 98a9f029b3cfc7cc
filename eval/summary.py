"""A table of other tables' averages (the paper's Table 4): one column for each of them, row by row."""

from __future__ import annotations

from pathlib import Path

from emkit.errors import UserError
from emkit.files import atomic_write
from emkit.schema import fail, nearest
from eval import render
from eval import table as tables
from eval.plan import Plan


class Summary:
    """The ``plans`` behind its columns, and what it says once they were run."""

    def __init__(self, table: str | Path, profile: str | Path, results: str | Path):
        self.path, self.table = tables.find(table), tables.load(table)
        if not self.table.averages:
            raise UserError(f"{self.path} has columns of its own: it is no table of averages")
        self.plans = {name: Plan(member, profile, results) for name, member in self.table.averages.items()}
        self.profile = next(iter(self.plans.values())).profile.name
        self.folder = Path(results) / self.profile / "tables"
        for row in self.table.rows:
            known = {entry.id for plan in self.plans.values() for entry in plan.table.rows}
            if row.id not in known:
                raise fail(f"{self.path}: rows", f"no table here has the row '{row.id}': {nearest(row.id, known)}")

    def entries(self) -> list[render.Entry]:
        """One line a row and column: the average of that row in that column's table."""
        found = []
        for row in self.table.rows:
            for name, plan in self.plans.items():
                entry = render.row_entries(plan, row.id)[-1] if row.id in plan.rows else render.Entry("", "")
                found.append(render.Entry(**vars(entry) | {"method": row.label, "benchmark": name}))
        return found

    def write(self) -> Path:
        """Write the table as Markdown and as CSV, where they say something else; returns the Markdown's path."""
        lines, path = self.entries(), self.folder / f"{self.path.stem}.md"
        texts = {path.with_suffix(".csv"): render.as_csv(lines), path: self._markdown(lines)}
        for target, text in texts.items():
            if not target.is_file() or target.read_text(encoding="utf-8") != text:
                with atomic_write(target) as part:
                    part.write_text(text, encoding="utf-8")
        return path

    def _markdown(self, lines: list[render.Entry]) -> str:
        return render.as_markdown(lines, self.table, self.profile)


def standing(table: str, profile: str, results: str) -> str:
    """A table's scores as they are now, perhaps not all of them, in Markdown."""
    if tables.load(table).averages:
        return render.ours(Summary(table, profile, results).entries())
    plan = Plan(table, profile, results)
    return render.ours(render.entries(plan), plan.table)


def expanded(names: list[str], profile: str, results: str) -> tuple[list[Plan], list[Summary]]:
    """The plans behind some tables, each once, and those tables that only sum up others.

    ``UserError`` where two of the plans, or one and a shipped table of the same profile, call two different rows by one
    id: their scores would lie in one place.
    """
    plans: dict[Path, Plan] = {}
    summaries: list[Summary] = []
    for name in names:
        if tables.load(name).averages:
            summaries.append(Summary(name, profile, results))
            members = list(summaries[-1].plans.values())
        else:
            members = [Plan(name, profile, results)]
        plans |= {plan.path.resolve(): plan for plan in members if plan.path.resolve() not in plans}
    for plan in plans.values():
        for other in [*plans.values(), *_shipped(plan)]:
            _agree(plan, other)
    return list(plans.values()), summaries


def _shipped(plan: Plan) -> list[Plan]:
    """The shipped tables whose scores lie where those of ``plan`` do."""
    if not plan.profile_path.is_relative_to(tables.FOLDER.parent):
        return []
    same = [name for name in tables.names() if tables.load(name).backbone == plan.table.backbone]
    return [Plan(name, plan.profile_path, plan.home.parent) for name in same]


def _agree(plan: Plan, other: Plan) -> None:
    if plan.home != other.home or plan.backbone != other.backbone:
        return
    mine, theirs = ({*map(each.scored, each.rows), *each.scale_rows} for each in (plan, other))
    for row in mine & theirs:
        one, another = plan.content(row), other.content(row)
        if one is not None and another is not None and one != another:
            keys = ", ".join(key for key in one if one[key] != another.get(key))
            raise UserError(
                f"{plan.path}: row '{row}' is another row in {other.path} ({keys}): give it an id of its own, or use a "
                "profile of another name"
            )
