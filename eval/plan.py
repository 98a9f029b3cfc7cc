"""The jobs behind a table: what runs, in which order, where its files lie, and what makes a finished job still valid.

A *row* is one job per seed: merge, score every benchmark, one score file each. A *point* is the same job on
the validation split at one value of a free scale. Snakefile, launcher and ``make plan-table1`` all read this module.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from emkit import methods
from emkit.alignment.learner import SCALE
from emkit.alignment.sources import ZooSamples
from emkit.config import Settings, parse
from emkit.errors import UserError
from emkit.files import read_json, sha256_json
from emkit.schema import fail, nearest
from eval import columns, keys, scores
from eval import profile as profiles
from eval import table as tables
from eval.columns.kinds import Column
from eval.places import VALIDATION, Job, Places

_SCALED = tables.Row(id="task_arithmetic", label="Task Arithmetic", method="task_arithmetic")


class Plan(Places):
    """Everything that a table asks for under a profile. ``results`` is the folder of all profiles; nothing is written.

    ``table`` and ``profile`` are names of shipped ones or YAML files (:mod:`eval.table`, :mod:`eval.profile`).
    """

    def __init__(self, table: str | Path, profile: str | Path = "mini", results: str | Path = "results"):
        self.asked = (str(table), str(profile))
        self.path, self.table = tables.find(table), tables.load(table)
        if self.table.backbone is None:
            raise UserError(f"{self.path} is of other tables' averages: it has no rows of its own to run")
        self.profile_path = profiles.find(profile, self.table.backbone)
        self.profile = profiles.load(self.profile_path)
        if self.profile.backbone != self.table.backbone:
            raise UserError(f"{self.path} is of {self.table.backbone}, {self.profile_path} of {self.profile.backbone}")
        super().__init__(Path(results) / self.profile.name, self.profile.backbone, self.path.stem, self.table.columns)
        self.rows = {row.id: row for row in self.table.rows if row.id not in self.profile.leave_out}
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
        if method is not None:
            if row.id in profile.scales and "scale" not in method.needs:
                raise fail(here, f"the method {row.method} has no free scale: remove it from 'scales'")
            if row.options:
                methods.check_options(method, row.options, f"{here}.options", profile.models.experts)
            self.settings(row.id)

    # ---- what runs
    def entry(self, row: str) -> tables.Row:
        """A row that is shown, or Task Arithmetic's, on whose scale learned rows start whether it is shown or not;
        ``UserError`` for another."""
        known = {_SCALED.id: _SCALED} | self.rows
        if row not in known:
            raise UserError(f"{self.path}: unknown row '{row}': {nearest(row, self.rows)}")
        return known[row]

    @cached_property
    def protocol(self) -> columns.Protocol:
        """How each column is asked; raises ``UserError`` for one that there is not."""
        profile, where = self.profile, f"{self.profile_path}: protocol"
        asked_as = profile.asked_as or profile.name
        return columns.protocol(asked_as, profile.backbone, self.benchmarks, profile.protocol, where)

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
        entry, samples = self.entry(row), self.calibration(row).samples
        return self.profile.options(str(entry.method), entry.options, like, samples, f"{self.path}: row '{row}': ")

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

    @cached_property
    def jobs(self) -> list[Job]:
        """The row jobs in the table's order, without their scale."""
        return [Job(row, seed) for row in self.rows if self.runs(row) for seed in self.seeds(row)]

    @cached_property
    def scale_rows(self) -> list[str]:
        """The rows whose scale has to be chosen."""
        return sorted({source for job in self.jobs if (source := self.scale_row(job.row))})

    @property
    def grid(self) -> list[float]:
        """The values of a free scale that are tried."""
        return [float(value) for value in self.profile.grid]

    def points(self, row: str) -> list[Job]:
        """The validation jobs of a row's scale, one per value of the grid."""
        return [Job(row, self.profile.seeds[0], VALIDATION, value) for value in self.grid]

    def data_key(self, split: str) -> str:
        """What a split's files are drawn from: the protocol and the code."""
        return sha256_json([self.protocol.drawn(), split, keys.drawing()])

    def items_identity(self, split: str, benchmark: str) -> str | None:
        """sha256 of a benchmark's items, None before they exist."""
        entries = read_json(self.manifest(split)) if self.manifest(split).is_file() else {}
        return entries.get("benchmarks", {}).get(benchmark, {}).get("sha256")

    def data_is_current(self, split: str) -> bool:
        """Whether the split's files are complete and drawn from what the protocol and the code say now."""
        key = self.data(split) / "key"
        if not (self.manifest(split).is_file() and key.is_file() and key.read_text() == self.data_key(split)):
            return False
        files = read_json(self.manifest(split)).get("files", {})
        return all(keys.file_identity(self.data(split) / name) == digest for name, digest in files.items())

    # ---- what a reader is told
    @property
    def command(self) -> str:
        """What a user types in the repository's root to make everything that is missing."""
        table, profile = self.asked
        shipped = self.path == tables.FOLDER / f"{table}.yaml" and self.profile_path.is_relative_to(profiles.FOLDER)
        if not shipped or self.home.parent.resolve() != keys.ROOT / "results":
            return f".venv/bin/python -m eval reproduce {table} --profile {profile} --results {self.home.parent}"
        return f"make reproduce-{table}" + ("" if profile == "mini" else f" PROFILE={profile}")

    def needed(self, path: Path, what: str = "score file") -> Path:
        """``path``, a file that a run leaves; ``UserError`` with the command that makes it where there is none."""
        if path.is_file():
            return path
        said = f"{self.table.title} has not been run to its end; run `{self.command}` in {keys.ROOT}"
        raise UserError(f"no {what} {path}: {said}")

    # ---- what a score depends on
    @property
    def cache(self) -> Path:
        """Calibration sets and fits, apart for every state of the code, the libraries and the models' files."""
        names = {"base": self.profile.models.base, **self.profile.models.experts}
        models = {role: keys.model_identity(name) for role, name in names.items()}
        return self.run / "cache" / sha256_json([keys.fits(self.profile.backbone), models, self.profile.device])[:16]

    def _calibration_identity(self, row: str) -> dict:
        """The row's calibration section, with the content of the files that it names."""
        section = self.calibration(row).model_dump(exclude_defaults=True)
        files = section.get("files", {})
        return {**section, "content": {name: keys.file_identity(path) for name, path in files.items()}}

    def chosen_scale(self, row: str) -> float | None:
        """The scale given to or chosen for ``row``, or None where it has none or none is chosen yet."""
        source = self._scale_from(row)
        if source is None or self.given_scale(source) is not None:
            return self.given_scale(source) if source else None
        path = self.scale_file(source)
        return read_json(path)["scale"] if path.is_file() else None

    def resolved(self, job: Job) -> Job:
        """The job at the scale it runs with."""
        if job.split == VALIDATION:
            return job
        return Job(job.row, job.seed, job.split, self.chosen_scale(job.row))

    def model_names(self, row: str) -> dict[str, str]:
        """The checkpoints that a row reads: folder or hub id by role."""
        entry, profile, method = self.entry(row), self.profile, self.method(row)
        roles = ["base", *profile.models.experts] if method.merges else ["base"] if "expert" in method.needs else []
        return {role: profile.checkpoints[role] for role in [*roles, *([entry.model] if entry.model else [])]}

    def expected(self, job: Job, benchmark: str) -> dict:
        """The hashes that a valid score file of this cell carries; ``data_sha256`` is None before the data exist."""
        profile, row, method = self.profile, self.entry(job.row), self.method(job.row)
        protocol, asked = self.protocol, self.protocol.columns[benchmark]
        part = {
            "backbone": profile.backbone,
            "method": row.method,
            "model": row.model,
            "settings": self.settings(job.row).model_dump(),
            "seed": job.seed,
            "scale": job.scale,
            "first_stage": first.model_dump() if (first := self.first(job.row)) else None,
            "calibration": self._calibration_identity(job.row) if method.learned else None,
            "device": profile.device,
            "dtype": self.dtype,
            "judge_upstream": protocol.judge_upstream if asked.judge else None,
            "judge_model": protocol.judge_model if asked.judge else None,
            "benchmark": asked.asked(),
            "image_features": "kept" if protocol.keep_image_features else "computed with each answer",
        }
        models = {role: keys.model_identity(name) for role, name in self.model_names(job.row).items()}
        return {
            "recipe_sha256": sha256_json(part),
            "model_sha256": sha256_json(models),
            "data_sha256": self.items_identity(job.split, benchmark),
            "versions": self._versions(job.row, asked),
        }

    def _versions(self, row: str, column: Column) -> dict[str, str]:
        """Libraries and code behind a cell."""
        method = self.method(row)
        drawn = method.learned and self.calibration(row).source == "zoo"
        merged = keys.merging(method.run.__module__, self.profile.backbone, method.learned, drawn)
        return keys.versions(column.libraries) | {"merging": merged, "scoring": keys.scoring(column)}

    def is_valid(self, job: Job, benchmark: str) -> bool:
        """Whether the cell stands, scored from exactly what this run would score it from."""
        path = self.cell(job, benchmark)
        if not path.is_file():
            return False
        try:
            cell = scores.read_cell(path)
        except (UserError, ValueError, KeyError):
            return False
        expected = self.expected(self.resolved(job), benchmark)
        return cell.status == "ok" and all(getattr(cell, name) == value for name, value in expected.items())

    def is_done(self, job: Job) -> bool:
        """Whether every cell of the job stands."""
        return all(self.is_valid(job, benchmark) for benchmark in self.benchmarks)


def _check_known(named: Iterable[str], table: tables.Table, where: str) -> None:
    """``UserError`` for a row that neither this table nor a shipped one has."""
    known = [row.id for row in table.rows]
    if not set(named) <= set(known):
        known += [row.id for name in tables.names() for row in tables.load(name).rows]
    for name in named:
        if name not in known:
            raise fail(where, f"unknown row '{name}': {nearest(name, dict.fromkeys(known))}")
