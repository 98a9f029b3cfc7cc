"""``emkit bench merge``: time and memory of merges by emkit and, where it is installed, by mergekit, in one run."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from emkit.bench import measure
from emkit.bench.measure import Cost
from emkit.bench.models import Shape, write_models
from emkit.errors import UserError


@dataclass(frozen=True)
class Compared:
    """A method as both programs know it: ``emkit`` and its options, mergekit's name and its parameters."""

    emkit: str
    options: dict
    mergekit: str
    parameters: dict = field(default_factory=dict)


METHODS = {
    "task_arithmetic": Compared("task_arithmetic", {"scale": 0.3}, "task_arithmetic", {"weight": 0.3}),
    # emkit's threshold is over the whole task vector, mergekit's over each tensor by itself
    "ties": Compared("ties", {"scale": 1.0, "density": 0.2}, "ties", {"weight": 1.0, "density": 0.2}),
    # mergekit's definition: no second trim, the sum of the agreeing entries
    "dare_ties": Compared(
        "ties_dare",
        {"scale": 1.0, "drop": 0.2, "second_trim": False, "merge": "sum"},
        "dare_ties",
        {"weight": 1.0, "density": 0.8},
    ),
}
WUDI = "wudi"
WUDI_EXPERTS = 5
IMPORTS = "import time, torch; time.sleep(0.5)"


@dataclass(frozen=True)
class Options:
    """What to measure: see ``emkit bench merge --help``. Checkpoints are made in a folder of their own in ``work``."""

    parameters: int
    experts: int
    methods: Sequence[str]
    mergekit: Path | None
    work: Path
    repeats: int = 1
    iterations: int = 100

    @property
    def folder(self) -> Path:
        """Where the checkpoints of this size are made."""
        return self.work / f"llama-{Shape.of(self.parameters).parameters}"

    @property
    def command(self) -> str:
        """The command line that measures this, without the paths of this machine."""
        words = [
            f"--parameters {self.parameters:g}",
            f"--experts {self.experts}",
            *(f"--method {name}" for name in self.methods),
        ]
        words += [f"--repeats {self.repeats}", f"--iterations {self.iterations}"]
        return " ".join(["emkit bench merge", *words, *([] if self.mergekit else ["--no-mergekit"])])


def bench(options: Options, say: Callable[[str], None] = print) -> dict:
    """Measure and return a JSON value: the machine, the versions, and every run's costs by method and program."""
    unknown = sorted(set(options.methods) - {*METHODS, WUDI})
    if unknown:
        raise UserError(f"unknown method '{unknown[0]}': choose among {', '.join((*METHODS, WUDI))}")
    shape = Shape.of(options.parameters)
    report = {
        "command": options.command,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "versions": _versions(options.mergekit),
        "shape": vars(shape) | {"parameters": shape.parameters, "dtype": "bfloat16", "experts": options.experts},
        "interpreter": measure.run([sys.executable, "-c", IMPORTS]).to_json(),
        "methods": {},
        "wudi": [],
    }
    compared = [name for name in options.methods if name in METHODS]
    if compared:
        say(f"writing a base and {options.experts} experts of {shape.parameters / 1e6:.0f}M parameters")
        base, experts = write_models(options.folder, shape, options.experts)
        for folder in (base, *experts):  # no program shall be the one that reads them from the disk
            _read_through(folder)
    for name in compared:
        report["methods"][name] = _compare(METHODS[name], base, experts, options, say)
    if WUDI in options.methods:
        sizes = [(shape.hidden, shape.hidden), (shape.intermediate, shape.hidden), (shape.hidden, shape.intermediate)]
        report["wudi"] = [_wudi(*size, options.iterations, say) for size in sizes]
    report["load_at_end"] = os.getloadavg()[0]
    return report


def _compare(method: Compared, base: Path, experts: list[Path], options: Options, say) -> dict[str, list[dict]]:
    """The costs of ``repeats`` runs of each program, in alternation."""
    programs = {"emkit": _emkit(method, base, experts)}
    if options.mergekit is not None:
        programs["mergekit"] = _mergekit(method, base, experts, options)
    costs: dict[str, list[dict]] = {program: [] for program in programs}
    for _ in range(options.repeats):
        for program, command in programs.items():
            with tempfile.TemporaryDirectory(dir=options.folder) as out:
                cost = measure.run(command(Path(out) / "merged"), {"HF_HUB_OFFLINE": "1"})
            say(f"{method.emkit} by {program}: {cost.wall_s:.1f} s, {cost.anonymous_mb:.0f} MB anonymous")
            costs[program].append(cost.to_json())
    return costs


def _emkit(method: Compared, base: Path, experts: list[Path]) -> Callable[[Path], list]:
    start = [sys.executable, "-m", "emkit.bench.child", method.emkit, base]
    return lambda out: [*start, out, json.dumps(method.options), *experts]


def _mergekit(method: Compared, base: Path, experts: list[Path], options: Options) -> Callable[[Path], list]:
    config = options.folder / f"{method.mergekit}.yaml"
    value = {
        "merge_method": method.mergekit,
        "base_model": str(base.resolve()),
        "models": [{"model": str(path.resolve()), "parameters": method.parameters} for path in experts],
        "dtype": "bfloat16",
    }
    config.write_text(yaml.safe_dump(value, sort_keys=False), encoding="utf-8")
    return lambda out: [options.mergekit, config, out, "--no-copy-tokenizer", "--quiet"]


def _wudi(rows: int, columns: int, iterations: int, say) -> dict:
    """Both forms on one matrix; ``UserError`` if they do not come to the same."""
    costs, found = {}, {}
    for form in ("emkit", "direct"):
        size = [str(number) for number in (rows, columns, WUDI_EXPERTS, iterations)]
        cost = measure.run([sys.executable, "-m", "emkit.bench.wudi", form, *size])
        result = json.loads(cost.output)
        costs[form] = cost.to_json() | {"iterations_s": round(result["seconds"], 3)}
        found[form] = result["entries"]
        say(f"wudi {rows}x{columns}, {form} form: {result['seconds']:.1f} s for {iterations} steps")
    furthest = max(abs(a - b) for a, b in zip(found["emkit"], found["direct"], strict=True))
    if furthest > 1e-6:
        raise UserError(f"the two forms of WUDI differ by {furthest}: a benchmark of unequal things says nothing")
    return {"rows": rows, "columns": columns, "experts": WUDI_EXPERTS, "iterations": iterations, **costs}


def median(costs: Sequence[dict]) -> Cost:
    """The median of each cost over the runs."""
    return Cost(*(statistics.median(cost[key] for cost in costs) for key in list(costs[0])[:4]))


def find_mergekit(given: str | None) -> Path | None:
    """The ``mergekit-yaml`` that was named, or the one on the PATH; None if there is none."""
    found = shutil.which(given or "mergekit-yaml")
    if given and not found:
        raise UserError(f"there is no program {given}: give the path of mergekit-yaml, or leave --mergekit out")
    return Path(found).absolute() if found else None


def _read_through(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        with open(path, "rb") as file:
            while file.read(2**24):
                pass


def _versions(mergekit: Path | None) -> dict[str, str]:
    found = {name: importlib.metadata.version(name) for name in ("emkit", "torch", "safetensors", "numpy")}
    if mergekit is not None:
        code = "import importlib.metadata as m; print(m.version('mergekit'), m.version('torch'))"
        of = measure.run([mergekit.parent / "python", "-c", code]).output.split()
        found |= {"mergekit": of[0], "mergekit's torch": of[1]}
    return {"python": platform.python_version(), **found}


def _machine() -> dict:
    """What the numbers depend on; nothing that names the machine."""
    import torch

    info = Path("/proc/cpuinfo")
    models = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 1e9, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load_at_start": os.getloadavg()[0],
    }
