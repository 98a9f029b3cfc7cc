"""What a benchmark leaves: a table of promises with what was measured, as text, JSON and markdown."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from emkit.files import atomic_write, write_json

LIBRARIES = ("torch", "transformers", "safetensors", "numpy")


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


def markdown(lines: list[Line]) -> str:
    """The table."""
    rows = [HEAD, ("---",) * len(HEAD), *(line.cells for line in lines)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def machine() -> dict:
    """Processor, cores, memory and, where there is one, GPU."""
    import torch

    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    found = {"processor": model, "cores": os.cpu_count(), "system": platform.system()}
    if hasattr(os, "sysconf"):
        found["memory_gib"] = round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    found["gpu"] = None
    if torch.cuda.is_available():
        memory = torch.cuda.get_device_properties(0).total_memory / 2**30
        found["gpu"] = f"{torch.cuda.get_device_name()} ({memory:.1f} GiB), CUDA {torch.version.cuda}"
    return found


def leave(folder: Path, name: str, title: str, lines: list[Line], notes: list[str]) -> str:
    """Write ``name``.json and ``name``.md into ``folder``; the table with its heading, as it is in the latter."""
    stated = {
        "command": " ".join(["emkit", *sys.argv[1:]]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(),
        "load": list(os.getloadavg()),
        "versions": {library: importlib.metadata.version(library) for library in LIBRARIES},
    }
    values = [vars(line) | {"verdict": line.verdict} for line in lines]
    write_json(folder / f"{name}.json", stated | {"lines": values, "notes": notes})
    described = ", ".join(f"{key} {value}" for key, value in stated["machine"].items() if value is not None)
    versions = ", ".join(f"{key} {value}" for key, value in stated["versions"].items())
    load = ", ".join(f"{value:.1f}" for value in stated["load"])
    text = f"# {title}\n\n`{stated['command']}`, {stated['date']}. {described}; load at the end {load}. {versions}.\n\n"
    text += markdown(lines) + "\n\n" + "\n".join(f"- {note}" for note in notes) + "\n"
    with atomic_write(folder / f"{name}.md") as part:
        part.write_text(text, encoding="utf-8")
    return text
