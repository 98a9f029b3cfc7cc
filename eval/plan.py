"""The jobs behind a table: what runs, in which order, where its files lie, and what makes a finished job still valid.

A *row* is one job per seed: merge, score every benchmark, one score file each. A *point* is the same job on
the validation split at one value of a free scale. Snakefile, launcher and ``make plan-table1`` all read this module.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from emkit import methods
from emkit import recipe as recipes
from emkit.alignment.learner import SCALE
from emkit.errors import UserError
from emkit.files import sha256_json
from eval import benchmarks, keys, published, scores

VALIDATION, EVALUATION = "validation", "evaluation"


@dataclass(frozen=True)
class Job:
    """One merge to score: a row and a seed, on one split, at a scale (None: it has none, or none is chosen yet)."""

    row: str
    seed: int
    split: str = EVALUATION
    scale: float | None = None

    @property
    def name(self) -> str:
        """Its folder below the split's: ``row/seed``, or ``row/scale`` for a point of the grid."""
        return f"{self.row}/{self.seed if self.split == EVALUATION else self.scale}"


class Plan:
    """Everything a recipe asks for. ``results`` is the folder of all profiles; nothing is written here."""

    def __init__(self, path: str | Path, results: str | Path = "results"):
        self.path = Path(path)
        self.recipe = recipes.load(self.path)
        self.home = Path(results) / self.recipe.profile
        self.run = self.home / ".run" / self.recipe.backbone
        self.rows = {row["id"]: row for row in self.recipe.rows}

    # ---- what runs
    @cached_property
    def paper(self) -> published.PaperTable:
        """The paper's table that this one stands beside."""
        return published.of(self.recipe.backbone)

    def harness(self, benchmark: str) -> str:
        """Who scores a benchmark, by its name in the protocol."""
        return benchmarks.harness(self.protocol["benchmarks"][benchmark])

    @cached_property
    def protocol(self) -> dict:
        """How each benchmark is asked; raises ``UserError`` when a benchmark of the recipe is not in it."""
        path = self.recipe.data["protocol"]
        settings = benchmarks.load(path)
        for benchmark in self.benchmarks:
            if benchmark not in settings["benchmarks"]:
                known = ", ".join(settings["benchmarks"])
                raise UserError(f"{self.path}: unknown benchmark '{benchmark}': {path} has {known}")
        return settings

    @property
    def dtype(self) -> str:
        """The number format, by torch's name, in which a merged model answers; merging and fits have their own."""
        return self.protocol.get("generation", {}).get("dtype", "float32")

    def method(self, row: str) -> methods.Method:
        """The method of a row that runs."""
        return methods.get(self.rows[row]["method"])

    def runs(self, row: str) -> bool:
        """Whether the row is computed; one without method or checkpoint stands in the table as "not run yet"."""
        return self.rows[row]["method"] is not None

    def seeds(self, row: str) -> list[int]:
        """The recipe's seeds for a random method, the first alone for the others."""
        return self.recipe.seeds if self.method(row).random else self.recipe.seeds[:1]

    def settings(self, row: str) -> dict:
        """The value of every option of the row's method; empty for a method without options."""
        return self.recipe.settings(self.rows[row]).model_dump()

    def scale_row(self, row: str) -> str | None:
        """The row on whose validation curve this row's scale is chosen: itself, Task Arithmetic's, or none."""
        source = self._scale_from(row)
        return None if source is None or "scale" in self.rows[source] else source

    def _scale_from(self, row: str) -> str | None:
        """The row whose scale this row runs with, chosen or given: itself, the one it starts from, or none."""
        if "scale" not in self.method(row).needs:
            return None
        if "scale" in self.rows[row] or not self.method(row).learned:
            return row
        if self.settings(row)["initial"] != SCALE:
            return None
        found = next((name for name in self.rows if self.rows[name]["method"] == "task_arithmetic"), None)
        if found is None:
            raise UserError(f"{self.path}: row '{row}' starts from the {SCALE}, but there is no such row")
        return found

    @property
    def benchmarks(self) -> list[str]:
        """The table's columns, without the average."""
        return self.recipe.data["benchmarks"]

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
        return [float(value) for value in self.recipe.data["scale"]["grid"]]

    def points(self, row: str) -> list[Job]:
        """The validation jobs of a row's scale, one per value of the grid."""
        return [Job(row, self.recipe.seeds[0], VALIDATION, value) for value in self.grid]

    # ---- where files lie
    def data(self, split: str) -> Path:
        """The folder of a split's benchmark files."""
        return self.run / "data" / split

    @property
    def judge(self) -> Path:
        """What the judge was asked and replied for any table of the profile, and what it has cost."""
        return self.home / ".run" / "judge"

    def manifest(self, split: str) -> Path:
        """Written last when a split's benchmark files are complete: hashes and item counts."""
        return self.data(split) / "manifest.json"

    def data_key(self, split: str) -> str:
        """What a split's files are drawn from: the protocol and the code."""
        return sha256_json([self.protocol, split, keys.code_version(keys.DRAWING)])

    def items_identity(self, split: str, benchmark: str) -> str | None:
        """sha256 of a benchmark's items, None before they exist."""
        manifest = self.manifest(split)
        entries = json.loads(manifest.read_text(encoding="utf-8")) if manifest.is_file() else {}
        return entries.get("benchmarks", {}).get(benchmark, {}).get("sha256")

    def data_is_current(self, split: str) -> bool:
        """Whether the split's files are complete and drawn from what the protocol and the code say now."""
        key = self.data(split) / "key"
        if not (self.manifest(split).is_file() and key.is_file() and key.read_text() == self.data_key(split)):
            return False
        files = json.loads(self.manifest(split).read_text(encoding="utf-8")).get("files", {})
        return all(keys.file_identity(self.data(split) / name) == digest for name, digest in files.items())

    def cells(self, job: Job) -> Path:
        """The folder of a job's score files."""
        home = self.home / self.recipe.backbone if job.split == EVALUATION else self.run / "scale"
        return home / job.name

    def cell(self, job: Job, benchmark: str) -> Path:
        """One score file."""
        return self.cells(job) / f"{benchmark}.json"

    @property
    def signs(self) -> Path:
        """The folder in which running jobs say what they are at."""
        return self.run / "signs"

    def stamp(self, job: Job) -> Path:
        """What Snakemake looks for: the job has ended and every cell of it is written."""
        return self.run / "stamps" / job.split / f"{job.name}.done"

    def scale_file(self, row: str) -> Path:
        """The chosen scale and the whole validation curve."""
        return self.run / "scale" / f"{row}.json"

    @property
    def zoo_stamp(self) -> Path:
        """Stands when the recipe's models are there (trained, for a recipe that names a zoo)."""
        return self.run / "stamps" / "zoo.done"

    @property
    def table(self) -> Path:
        """The table as the run writes it; the committed one is a copy."""
        return self.run / "tables" / f"{self.paper.name}.csv"

    @property
    def notebook(self) -> Path:
        """The executed notebook as the run writes it; the committed one is a copy."""
        return self.run / "notebooks" / f"{self.paper.name}.ipynb"

    # ---- what a reader is told
    @property
    def command(self) -> str:
        """What a user types in the repository's root to make everything that is missing."""
        shipped = keys.ROOT / "emkit" / "recipes" / self.recipe.profile / f"{self.recipe.backbone}.yaml"
        if self.path.resolve() != shipped or self.home.parent.resolve() != keys.ROOT / "results":
            return f".venv/bin/python -m eval reproduce {self.path} --results {self.home.parent}"
        profile = "" if self.recipe.profile == "mini" else f" PROFILE={self.recipe.profile}"
        return f"make reproduce-{self.paper.name}{profile}"

    def needed(self, path: Path, what: str = "score file") -> Path:
        """``path``, a file that a run leaves; ``UserError`` with the command that makes it where there is none."""
        if path.is_file():
            return path
        raise UserError(
            f"no {what} {path}: {self.paper.title} has not been run to its end; run `{self.command}` in {keys.ROOT}"
        )

    # ---- what a score depends on
    @property
    def cache(self) -> Path:
        """Calibration sets and fits, apart for every state of the code, the libraries and the models' files."""
        names = {"base": self.recipe.model("base"), **self.recipe.experts}
        models = {role: keys.model_identity(name) for role, name in names.items()}
        return self.run / "cache" / sha256_json([keys.versions(), models, self.recipe.device])[:16]

    def _calibration_identity(self) -> dict:
        """The recipe's calibration section, with the content of the files that it names."""
        section = self.recipe.data["calibration"]
        files = section.get("files", {})
        return {**section, "content": {name: keys.file_identity(path) for name, path in files.items()}}

    def chosen_scale(self, row: str) -> float | None:
        """The scale given to or chosen for ``row``, or None where it has none or none is chosen yet."""
        source = self._scale_from(row)
        if source is None or "scale" in self.rows[source]:
            return self.rows[source]["scale"] if source else None
        path = self.scale_file(source)
        return json.loads(path.read_text(encoding="utf-8"))["scale"] if path.is_file() else None

    def resolved(self, job: Job) -> Job:
        """The job at the scale it runs with."""
        if job.split == VALIDATION:
            return job
        return Job(job.row, job.seed, job.split, self.chosen_scale(job.row))

    def model_names(self, row: str) -> dict[str, str]:
        """The checkpoints that a row reads: folder or hub id by role."""
        entry = self.rows[row]
        if self.method(row).merges:
            roles = ["base", *self.recipe.experts]
        else:
            roles = [*(["base"] if "expert" in self.method(row).needs else []), entry["model"]]
        return {role: self.recipe.model(role) for role in roles}

    def expected(self, job: Job, benchmark: str) -> dict:
        """The hashes that a valid score file of this cell carries; ``data_sha256`` is None before the data exist."""
        recipe, row, method = self.recipe, self.rows[job.row], self.method(job.row)
        asked = {key: value for key, value in self.protocol["benchmarks"][benchmark].items() if key != "judge_tokens"}
        part = {
            "backbone": recipe.backbone,
            "method": row["method"],
            "model": row.get("model"),
            "settings": self.settings(job.row),
            "seed": job.seed,
            "scale": job.scale,
            "first_stage": recipe.method_settings(method.inherits).model_dump() if method.inherits else None,
            "calibration": self._calibration_identity() if method.learned else None,
            "device": recipe.device,
            "dtype": self.dtype,
            "judge_upstream": self.protocol["judge_upstream"] if asked["judge"] else None,
            "judge_model": self.protocol.get("judge_model") if asked["judge"] else None,
            "benchmark": asked,
            "image_features": "kept" if self.protocol.get("keep_image_features") else "computed with each answer",
        }
        models = {role: keys.model_identity(name) for role, name in self.model_names(job.row).items()}
        return {
            "recipe_sha256": sha256_json(part),
            "model_sha256": sha256_json(models),
            "data_sha256": self.items_identity(job.split, benchmark),
            "versions": keys.versions(self.harness(benchmark)),
        }

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
