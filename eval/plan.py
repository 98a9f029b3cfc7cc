"""The jobs behind a table: what runs, in which order, where its files lie, and what makes a finished job still valid.

A *row* is one job per seed: merge, score every benchmark, one score file each. A *point* is the same job on
the validation split at one value of a free scale. Snakefile, launcher and ``make plan-table1`` all read this module.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from emkit.errors import UserError
from emkit.files import read_json, sha256_json
from emkit.own.adapter_files import CONFIG as ADAPTER
from eval import keys, resolved, scores
from eval import profile as profiles
from eval import table as tables
from eval.columns.kinds import Column
from eval.configured import Configured
from eval.places import VALIDATION, Job


class Plan(Configured):
    """Everything that a table asks for under a profile: its jobs, and what makes their scores valid."""

    @cached_property
    def jobs(self) -> list[Job]:
        """The row jobs in the table's order, without their scale; rows that are the same have one."""
        found = [Job(self.scored(row), seed) for row in self.rows if self.runs(row) for seed in self.seeds(row)]
        return list(dict.fromkeys(found))

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

    @property
    def on_gpu(self) -> bool:
        """Whether its jobs take a GPU each."""
        return self.profile.device.startswith("cuda")

    def data_key(self, split: str) -> str:
        """What a split's files are drawn from: the protocol and the code."""
        published = any(column.published for column in self.protocol.columns.values())
        return sha256_json([self.protocol.drawn(), split, keys.drawing(published)])

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
        models = {role: self._identity(name) for role, name in names.items()}
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
        own = [entry.model] if entry.model else []
        on_base = "expert" in method.needs or any(self._is_adapter(profile.checkpoints[model]) for model in own)
        roles = ["base", *profile.models.experts] if method.merges else ["base"] if on_base else []
        asked = [profile.models.tokenizer] if profile.models.tokenizer else []
        return {role: profile.checkpoints[role] for role in [*roles, *own, *asked]}

    def folder(self, role: str) -> Path:
        """Where the base, an expert or the mixture is read from; ``UserError`` where it is not here (yet)."""
        return resolved.folder(self.profile.checkpoints[role], role, self.revisions)

    def _identity(self, name: str) -> str:
        found = keys.model_identity(name, resolved.identity(name, self.revisions))
        converted = resolved.conversion(name, self.revisions)
        return found if converted is None else f"{found} converted by {converted}"

    def _is_adapter(self, name: str) -> bool:
        found = resolved.stored(name, self.revisions)
        return found is not None and (found / ADAPTER).is_file()

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
            "batch": protocol.generation.batch,
            "tokenizer": profile.models.tokenizer,
            "fits": profile.fits.engine.identity if method.learned else None,
            "judge_upstream": protocol.judge_upstream if asked.judge else None,
            "judge_model": protocol.judge_model if asked.judge else None,
            "benchmark": asked.asked(),
            "image_features": "kept" if protocol.keep_image_features else "computed with each answer",
        }
        models = {role: self._identity(name) for role, name in self.model_names(job.row).items()}
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
        if expected["data_sha256"] is None:  # nobody knows what it was scored on
            return False
        return cell.status == "ok" and all(getattr(cell, name) == value for name, value in expected.items())

    def is_done(self, job: Job) -> bool:
        """Whether every cell of the job stands."""
        return all(self.is_valid(job, benchmark) for benchmark in self.benchmarks)
