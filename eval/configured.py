"""What each row of a table runs with under a profile: method, options, samples, scale, seeds.

Rows of different tables that come to the same settings are one row: its scores lie in one place and are made once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from emkit import methods
from emkit.alignment.learner import SCALE
from emkit.alignment.sources import ZooSamples
from emkit.config import Settings, parse
from emkit.errors import UserError
from emkit.schema import fail, nearest
from eval import columns
from eval import profile as profiles
from eval import table as tables
from eval.places import Job, Places

_SCALED = tables.Row(id="task_arithmetic", label="Task Arithmetic", method="task_arithmetic")


class Configured(Places):
    """A table's rows and columns with a profile's values. ``results`` is the folder of all profiles; it is not written.

    ``table`` and ``profile`` are names of shipped ones or YAML files (:mod:`eval.table`, :mod:`eval.profile`).
    """

    def __init__(self, table: str | Path, profile: str | Path = "mini", results: str | Path = "results"):
        self.asked = (str(table), str(profile))
        if set("{}") & set(str(results)):
            raise UserError(
                f"{results}: a folder with braces in its name cannot be used: Snakemake reads them as its own"
            )
        self.path, self.table = tables.find(table), tables.load(table)
        if self.table.backbone is None:
            raise UserError(f"{self.path} is of other tables' averages: it has no rows of its own to run")
        self.profile_path = profiles.find(profile, self.table.backbone)
        self.profile = profiles.load(self.profile_path)
        if self.profile.backbone != self.table.backbone:
            raise UserError(f"{self.path} is of {self.table.backbone}, {self.profile_path} of {self.profile.backbone}")
        super().__init__(Path(results) / self.profile.name, self.profile.backbone, self.path.stem, self.table.columns)
        self.rows = {row.id: row for row in self.table.rows if row.id not in self.profile.leave_out}
        self._scored: dict[str, str] = {}
        for row in self.rows.values():
            self._check(row)
        for key, named in (("scales", self.profile.scales), ("leave_out", self.profile.leave_out)):
            _check_known(named, self.table, f"{self.profile_path}: {key}")

    def _check(self, row: tables.Row) -> None:
        """``UserError`` for a row that cannot be run with this profile."""
        here, profile = f"{self.path}: row '{row.id}'", self.profile
        if row.model is not None and row.model not in ("mixture", *profile.checkpoints):
            raise fail(here, f"there is no model '{row.model}': {nearest(row.model, profile.checkpoints)}")
        method = None if row.method is None else methods.get(row.method)
        if method is not None and "expert" in method.needs and row.model not in profile.models.experts:
            raise fail(here, f"{method.name} needs an expert: {nearest(str(row.model), profile.models.experts)}")
        for key in row.relative_to:
            if key not in row.options:
                raise fail(f"{here}.relative_to", f"the row gives no option '{key}'")
        if method is not None:
            if row.id in profile.scales and "scale" not in method.needs:
                raise fail(here, f"the method {row.method} has no free scale: remove it from 'scales'")
            if row.options:
                methods.check_options(method, row.options, f"{here}.options", profile.models.experts)
            self.settings(row.id)

    # ---- what runs
    def entry(self, row: str) -> tables.Row:
        """A row that is shown, one that a shown row may share its scores with, or Task Arithmetic's, on whose scale
        learned rows start whether it is shown or not; ``UserError`` for another."""
        known = {_SCALED.id: _SCALED} | self._plain | self.rows
        if row not in known:
            raise UserError(f"{self.path}: unknown row '{row}': {nearest(row, self.rows)}")
        return known[row]

    @cached_property
    def _plain(self) -> dict[str, tables.Row]:
        """Rows of a method without values of their own, which a row of a sweep may come to."""
        found = [row for row in self.rows.values() if row.plain is not None]
        return {str(row.plain): tables.Row(id=str(row.plain), label=row.label, method=row.method) for row in found}

    def scored(self, row: str) -> str:
        """The id under which the row's scores lie: its own, or that of the plain row where the profile makes both the
        same, so that one row is one number in whatever table it stands."""
        if row not in self._scored:  # a display asks for every cell twice a second
            self._scored[row] = self._one_of(row)
        return self._scored[row]

    def _one_of(self, row: str) -> str:
        plain = self.entry(row).plain
        if plain is None or self.given_scale(row) != self.given_scale(plain):
            return row
        same = (self.settings(row), self.calibration(row)) == (self.settings(plain), self.calibration(plain))
        return plain if same else row

    def cells(self, job: Job) -> Path:
        """The folder of a job's score files."""
        return super().cells(replace(job, row=self.scored(job.row)))

    @cached_property
    def protocol(self) -> columns.Protocol:
        """How each column of the table is asked; raises ``UserError`` for one that there is not."""
        return self.asking(self.benchmarks)

    def asking(self, names: Iterable[str]) -> columns.Protocol:
        """How the profile asks the columns ``names``, of the table or not."""
        profile, where = self.profile, f"{self.profile_path}: protocol"
        asked_as = profile.asked_as or profile.name
        return columns.protocol(asked_as, profile.backbone, names, profile.protocol, where)

    @property
    def experts(self) -> dict[str, str]:
        """Column → the expert whose task it tests, for the columns that have one."""
        groups = {name: column.group for name, column in self.protocol.columns.items()}
        return {name: group for name, group in groups.items() if group in self.profile.models.experts}

    @property
    def dtype(self) -> str:
        """The number format, by torch's name, in which a merged model answers; merging and fits have their own."""
        return self.protocol.generation.dtype

    def method(self, row: str) -> methods.Method:
        """The method of a row that runs."""
        return methods.get(str(self.entry(row).method))

    def runs(self, row: str) -> bool:
        """Whether the row is computed; one without method or checkpoint stands in the table as "not run yet"."""
        entry = self.entry(row)
        return entry.method is not None and (entry.model is None or entry.model in self.profile.checkpoints)

    def seeds(self, row: str) -> list[int]:
        """The profile's seeds for a random method, the first alone for the others."""
        return self.profile.seeds if self.method(row).random else self.profile.seeds[:1]

    def settings(self, row: str, like: str | None = None) -> Settings:
        """Every option of the row's method; with ``like`` what that puts in place of what else holds."""
        entry, samples, where = self.entry(row), self.calibration(row).samples, f"{self.path}: row '{row}': "
        own = entry.options | self._relative(entry)
        found = self.profile.options(str(entry.method), own, like, samples, where)
        return every_sample(found, samples) if entry.every_sample else found

    def _relative(self, entry: tables.Row) -> dict[str, float]:
        """The options that a row gives in published units, in the profile's."""
        if not entry.relative_to:
            return {}
        usual = self.profile.options(str(entry.method), {})
        return {key: entry.options[key] / given * getattr(usual, key) for key, given in entry.relative_to.items()}

    def first(self, row: str, like: str | None = None) -> Settings | None:
        """The options of the method that the row's own builds on, without those of the row; None if there is none."""
        inherits, samples = self.method(row).inherits, self.calibration(row).samples
        return self.profile.options(inherits, {}, like, samples) if inherits else None

    def calibration(self, row: str) -> ZooSamples:
        """The samples that a learned row is fitted on."""
        given = self.profile.calibration.model_dump() | self.entry(row).calibration
        return parse(ZooSamples, given, f"{self.path}: row '{row}': calibration")

    def given_scale(self, row: str) -> float | None:
        """The scale that the table, else the profile gives a row; None where it is to be chosen."""
        entry = self.entry(row)
        return entry.scale if entry.scale is not None else self.profile.scales.get(row)

    def scale_row(self, row: str) -> str | None:
        """The row on whose validation curve this row's scale is chosen: itself, Task Arithmetic's, or none."""
        source = self._scale_from(row)
        return None if source is None or self.given_scale(source) is not None else source

    def _scale_from(self, row: str) -> str | None:
        """The row whose scale this row runs with, chosen or given: itself, the one it starts from, or none."""
        if "scale" not in self.method(row).needs:
            return None
        if self.given_scale(row) is not None or not self.method(row).learned:
            return row
        settings = self.settings(row)
        if not isinstance(settings, methods.Started) or settings.initial != SCALE:
            return None
        shown = (name for name, entry in self.rows.items() if entry.method == _SCALED.method)
        return next(shown, _SCALED.id)

    def content(self, row: str) -> dict | None:
        """What decides a row's scores besides the profile (None: it is not run): its own values, and for a chosen scale
        the benchmarks that it is chosen on."""
        if not self.runs(row):
            return None
        return self.entry(row).content | {"columns": self.benchmarks if self.scale_row(row) else None}

    @property
    def benchmarks(self) -> list[str]:
        """The table's columns, without the average."""
        return self.table.columns


def _check_known(named: Iterable[str], table: tables.Table, where: str) -> None:
    """``UserError`` for a row that neither this table nor a shipped one has."""
    known = [row.id for row in table.rows]
    if not set(named) <= set(known):
        known += [row.id for name in tables.names() for row in tables.load(name).rows]
    for name in named:
        if name not in known:
            raise fail(where, f"unknown row '{name}': {nearest(name, dict.fromkeys(known))}")


def every_sample(settings: Settings, samples: int) -> Settings:
    """``settings`` with their optimiser's batch doubled until a fit's steps reach each of ``samples`` once.

    Steps, rate and schedule stay, so that fits on different numbers of samples differ in what they see alone. A part of
    a sample that cannot be doubled becomes a whole one.
    """
    optimiser = getattr(settings, "optimiser", None)
    if optimiser is None or optimiser.batch == "all":
        return settings
    batch = optimiser.batch
    while samples / batch > optimiser.steps:
        batch = 2 * batch if batch >= 1 or batch <= 0.25 else 1
    return settings.model_copy(update={"optimiser": optimiser.model_copy(update={"batch": batch})})
