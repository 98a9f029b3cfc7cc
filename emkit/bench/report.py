"""What a benchmark leaves: what was measured, beside what is promised, and on which machine, as JSON and text."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch

from emkit.files import atomic_write, write_json

LIBRARIES = ("emkit", "torch", "transformers", "safetensors", "numpy")


@dataclass(frozen=True)
class Line:
    """One promise: ``measured`` against ``limit``, at most (``most``) or at least; None where it was ``not_run``."""

    what: str
    limit: float | None
    measured: float | None
    most: bool = True
    unit: str = "×"
    not_run: str = ""
    details: str = ""

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return f"not run: {self.not_run}"
        if self.limit is None:
            return "-"
        return "met" if (self.measured <= self.limit if self.most else self.measured >= self.limit) else "missed"

    @property
    def cells(self) -> tuple[str, str, str, str, str]:
        sign = "≤" if self.most else "≥"
        limit = "-" if self.limit is None else f"{sign} {self.limit:g}{self.unit}"
        measured = "-" if self.measured is None else f"{self.measured:.3g}{self.unit}"
        return self.what, limit, measured, self.verdict, self.details


HEAD = ("what", "promised", "measured", "verdict", "details")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def stated(command: str) -> dict:
    """What the numbers depend on besides ``command``; nothing that names the machine."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    gpu = None
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        gpu = f"{torch.cuda.get_device_name()} ({memory:.1f} GiB), CUDA {torch.version.cuda}"
    machine = {
        "processor": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "gpu": gpu,
    }
    versions = {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in LIBRARIES}}
    date = datetime.now(UTC).isoformat(timespec="seconds")
    return {"command": command, "date": date, "machine": machine, "load": os.getloadavg()[0], "versions": versions}


def heading(title: str, about: dict) -> str:
    """Title, command, machine and versions of what :func:`stated` gives."""
    machine, load = about["machine"], f"{about['load']:.1f} at the start, {os.getloadavg()[0]:.1f} at the end"
    where = f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gb']} GB, {machine['gpu'] or 'no GPU'}"
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    busy = f"load average {load} (above {machine['cores']}, other work took turns with this)"
    return f"# {title}\n\n    {about['command']}\n\n{about['date']}; {where}; {busy}. {versions}.\n\n"


def promises(title: str, about: dict, lines: Sequence[Line], notes: Sequence[str]) -> tuple[dict, str]:
    """Promises with what was measured, as a JSON value and as Markdown."""
    values = [vars(line) | {"verdict": line.verdict} for line in lines]
    text = heading(title, about) + table(HEAD, (line.cells for line in lines)) + "\n\n"
    return about | {"lines": values, "notes": list(notes)}, text + "".join(f"- {note}\n" for note in notes)


def leave(path: Path, value: dict, text: str) -> None:
    """Write ``path``.json and ``path``.md."""
    write_json(path.with_suffix(".json"), value)
    with atomic_write(path.with_suffix(".md")) as part:
        part.write_text(text, encoding="utf-8")
