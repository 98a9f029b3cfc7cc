"""A row of a table as one merge: the plain values that it is made of, and the one call of the merge job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emkit.alignment.sources import ZooSamples
from emkit.config import Settings
from emkit.files import sha256_json
from emkit.methods.row import merge_row
from eval.places import Job
from eval.plan import Plan


@dataclass(frozen=True)
class RowMerge:
    """What a row asks of the merge job; ``like``: whose options stand in place of its own (``--like``)."""

    plan: Plan
    id: str
    like: str | None = None

    @property
    def profile(self) -> str:
        return self.plan.profile.name

    @property
    def backbone(self) -> str:
        return self.plan.profile.backbone

    @property
    def device(self) -> str:
        return self.plan.profile.device

    @property
    def experts(self) -> dict[str, str]:
        """Expert → checkpoint, in the profile's order."""
        return self.plan.profile.models.experts

    @property
    def calibration(self) -> ZooSamples:
        """The samples of a learned row."""
        return self.plan.calibration(self.id)

    @property
    def sha256(self) -> str:
        """Hash of the row's values, wherever they were written."""
        models = {name: self.model(name) for name in ("base", *self.experts)}
        values = [
            self.plan.entry(self.id).content,
            self.plan.settings(self.id).model_dump(),
            models,
            self.calibration.model_dump(),
            self.device,
        ]
        return sha256_json(values)

    def row(self, row: str) -> dict[str, Any]:
        """The row, its scale where one is given."""
        entry, scale = self.plan.entry(row), self.plan.given_scale(row)
        given = {"id": row, "label": entry.label, "method": entry.method}
        return given | ({"model": entry.model} if entry.model else {}) | ({} if scale is None else {"scale": scale})

    def model(self, name: str) -> str:
        """Checkpoint of ``base``, ``mixture`` or an expert."""
        return self.plan.profile.checkpoints[name]

    def settings(self, row: Mapping[str, Any]) -> Settings:
        """Every option of the row's method."""
        return self.plan.settings(row["id"], self.like)

    def method_settings(self, method: str) -> Settings | None:
        """The options of the method that the row's own builds on."""
        return self.plan.first(self.id, self.like)


def merge(plan: Plan, job: Job, out: Path, cache: Path, **more: Any) -> dict:
    """Merge a row into the checkpoint folder ``out``; ``job.scale`` is the chosen λ. Returns the job's report."""
    return merge_row(RowMerge(plan, job.row), job.row, job.seed, out, cache=cache, scale=job.scale, **more)
