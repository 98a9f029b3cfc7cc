"""Where the files of a table's run lie, and the jobs that they are named after."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from emkit.files import sha256_json

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


class Places:
    """Every path of a run: ``home`` is the profile's folder, ``name`` the table's.

    Score files lie by what they are (row, seed, benchmark of a profile's backbone), so tables share those of their
    common rows; all else of a run is under ``home/.run/<backbone>``.
    """

    def __init__(self, home: Path, backbone: str, name: str, columns: Iterable[str]):
        self.home, self.backbone, self.name = home, backbone, name
        self.drawn = sha256_json(sorted(columns))[:8]
        self.run = home / ".run" / backbone

    def data(self, split: str) -> Path:
        """The folder of a split's benchmark files, which tables of the same columns share."""
        return self.run / "data" / self.drawn / split

    @property
    def judge(self) -> Path:
        """What the judge was asked and replied for any table of the profile, and what it has cost."""
        return self.home / ".run" / "judge"

    def manifest(self, split: str) -> Path:
        """Written last when a split's benchmark files are complete: hashes and item counts."""
        return self.data(split) / "manifest.json"

    def cells(self, job: Job) -> Path:
        """The folder of a job's score files."""
        home = self.home / self.backbone if job.split == EVALUATION else self.run / "scale"
        return home / job.name

    def cell(self, job: Job, benchmark: str) -> Path:
        """One score file."""
        return self.cells(job) / f"{benchmark}.json"

    def answers(self, job: Job, benchmark: str) -> Path:
        """What was answered so far for a score file that is being made (:mod:`eval.journal`)."""
        return self.run / "answers" / job.split / job.name / f"{benchmark}.jsonl"

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
    def revisions(self) -> Path:
        """Hub id → the revision that was fetched (:mod:`eval.resolved`)."""
        return self.home / "models" / f"{self.backbone}.json"

    @property
    def zoo_stamp(self) -> Path:
        """Stands when the profile's models are there (trained, for a profile that names a zoo)."""
        return self.run / "stamps" / "zoo.done"

    @property
    def prompts_stamp(self) -> Path:
        """Stands when the calibration files that are made of columns are there (:mod:`eval.prompts`)."""
        return self.run / "stamps" / "prompts.done"

    @property
    def csv(self) -> Path:
        """The table as the run writes it; the committed one is a copy."""
        return self.run / "tables" / f"{self.name}.csv"

    @property
    def notebook(self) -> Path:
        """The executed notebook as the run writes it; the committed one is a copy."""
        return self.run / "notebooks" / f"{self.name}.ipynb"
