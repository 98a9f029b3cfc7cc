"""``emkit bench merge``: time and memory of merges by emkit and, where it is installed, by mergekit, in one run."""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from emkit.bench import measure, report
from emkit.bench.child import FORMS, RIDGE
from emkit.bench.models import Shape, write_models
from emkit.errors import UserError

CHILD = [sys.executable, "-m", "emkit.bench.child"]
COSTS = ("wall_s", "cpu_s", "anonymous_mb", "resident_mb")


@dataclass(frozen=True)
class Compared:
    """A method as both programs know it: ``emkit``, its scale and options, mergekit's name and its parameters."""

    emkit: str
    scale: float | None
    options: dict
    mergekit: str
    parameters: dict = field(default_factory=dict)


METHODS = {
    "task_arithmetic": Compared("task_arithmetic", 0.3, {}, "task_arithmetic", {"weight": 0.3}),
    # emkit's threshold is over the whole task vector, mergekit's over each tensor by itself
    "ties": Compared("ties", 1.0, {"density": 0.2}, "ties", {"weight": 1.0, "density": 0.2}),
    # mergekit's definition: no second trim, the sum of the agreeing entries
    "dare_ties": Compared(
        "ties_dare",
        1.0,
        {"drop": 0.2, "second_trim": False, "merge": "sum"},
        "dare_ties",
        {"weight": 1.0, "density": 0.8},
    ),
}
WUDI = "wudi"
WUDI_EXPERTS = 5
BLOCK = (4, 2, 1)  # how many matrices of each of WUDI's sizes a block has: q, k, v, o; gate, up; down
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
        words = [f"--parameters {self.parameters:g}", f"--experts {self.experts}"]
        words += [f"--method {name}" for name in self.methods]
        words += [f"--repeats {self.repeats}", f"--iterations {self.iterations}"]
        return " ".join(["emkit bench merge", *words, *([] if self.mergekit else ["--no-mergekit"])])


def bench(options: Options, say: Callable[[str], None] = print) -> dict:
    """Measure and return a JSON value: the machine, the versions, and every run's costs by method and program."""
    unknown = sorted(set(options.methods) - {*METHODS, WUDI})
    if unknown:
        raise UserError(f"unknown method '{unknown[0]}': choose among {', '.join((*METHODS, WUDI))}")
    shape, about = Shape.of(options.parameters), report.stated(options.command)
    if options.mergekit is not None:
        code = "import importlib.metadata as m; print(m.version('mergekit'), m.version('torch'))"
        of = measure.run([options.mergekit.parent / "python", "-c", code]).output.split()
        about["versions"] |= {"mergekit": of[0], "mergekit's torch": of[1]}
    found: dict = about | {
        "shape": vars(shape) | {"parameters": shape.parameters, "dtype": "bfloat16", "experts": options.experts},
        "interpreter": measure.run([sys.executable, "-c", IMPORTS]).to_json(),
        "methods": {},
        "wudi": [],
    }
    compared = [name for name in options.methods if name in METHODS]
    if compared:
        say(f"writing a base and {options.experts} experts of {shape.parameters / 1e6:.0f}M parameters")
        base, experts = write_models(options.folder, shape, options.experts)
        for path in options.folder.glob("*/*.safetensors"):  # no program shall be the one that reads it from the disk
            shutil.copyfile(path, "/dev/null")
    for name in compared:
        found["methods"][name] = _compare(METHODS[name], base, experts, options, say)
    if WUDI in options.methods:
        sizes = [(shape.hidden, shape.hidden), (shape.intermediate, shape.hidden), (shape.hidden, shape.intermediate)]
        found["wudi"] = [_wudi(*size, options.iterations, say) for size in sizes]
    return found


def _compare(method: Compared, base: Path, experts: list[Path], options: Options, say) -> dict[str, list[dict]]:
    """The costs of ``repeats`` runs of each program, in alternation."""
    names, config = [str(path) for path in experts], options.folder / f"{method.mergekit}.yaml"
    models = [{"model": str(path.resolve()), "parameters": method.parameters} for path in experts]
    value = {"merge_method": method.mergekit, "base_model": str(base.resolve()), "models": models, "dtype": "bfloat16"}
    config.write_text(yaml.safe_dump(value, sort_keys=False), encoding="utf-8")

    def command(program: str, out: str) -> list:
        if program == "mergekit":
            return [options.mergekit, config, out, "--no-copy-tokenizer", "--quiet"]
        return [*CHILD, "merge", json.dumps([method.emkit, str(base), out, names, method.scale, method.options])]

    costs: dict[str, list[dict]] = {program: [] for program in ("emkit", *(["mergekit"] if options.mergekit else []))}
    for _ in range(options.repeats):
        for program, runs in costs.items():
            with tempfile.TemporaryDirectory(dir=options.folder) as out:
                cost = measure.run(command(program, f"{out}/merged"), {"HF_HUB_OFFLINE": "1"})
            say(f"{method.emkit} by {program}: {cost.wall_s:.1f} s, {cost.anonymous_mb:.0f} MB anonymous")
            runs.append(cost.to_json())
    return costs


def _wudi(rows: int, columns: int, iterations: int, say) -> dict:
    """WUDI in both forms and Ridge on one matrix; ``UserError`` if the forms do not come to the same."""
    costs, found = {}, {}
    for form in (*FORMS, RIDGE):
        cost = measure.run([*CHILD, WUDI, json.dumps([form, rows, columns, WUDI_EXPERTS, iterations])])
        result = json.loads(cost.output)
        costs[form] = cost.to_json() | {"iterations_s": round(result["seconds"], 3)}
        found[form] = result["entries"]
        what = RIDGE if form == RIDGE else f"wudi in {form} form, {iterations} steps"
        say(f"{rows}x{columns}, {what}: {result['seconds']:.1f} s")
    furthest = max(abs(a - b) for a, b in zip(found["emkit"], found["direct"], strict=True))
    if furthest > 1e-6:
        raise UserError(f"the two forms of WUDI differ by {furthest}: a benchmark of unequal things says nothing")
    return {"rows": rows, "columns": columns, "experts": WUDI_EXPERTS, "iterations": iterations, **costs}


def find_mergekit(given: str | None) -> Path | None:
    """The ``mergekit-yaml`` that was named, or the one on the PATH; None if there is none."""
    found = shutil.which(given or "mergekit-yaml")
    if given and not found:
        raise UserError(f"there is no program {given}: give the path of mergekit-yaml, or leave --mergekit out")
    return Path(found).absolute() if found else None


# ---- as it is printed and committed
def markdown(found: dict) -> str:
    """The whole report: where and when, the command, and tables of costs and ratios."""
    text = report.heading("Merging: time and memory", found)
    return text + (_methods(found) if found["methods"] else "") + (_forms(found["wudi"]) if found["wudi"] else "")


def _methods(found: dict) -> str:
    shape, idle = found["shape"], found["interpreter"]["anonymous_mb"]
    rows, ratios = [], []
    for name, programs in found["methods"].items():
        medians = {p: [statistics.median(run[key] for run in runs) for key in COSTS] for p, runs in programs.items()}
        for program, (wall, cpu, anonymous, resident) in medians.items():
            cells = [f"{wall:.1f}", f"{cpu:.1f}", *(f"{mb:.0f}" for mb in (anonymous, anonymous - idle, resident))]
            rows.append([name, program, str(len(programs[program])), *cells])
        if "mergekit" in medians:
            both = zip(medians["emkit"][:3], medians["mergekit"][:3], strict=True)
            above = (medians[program][2] - idle for program in ("emkit", "mergekit"))
            ratios.append([name, *(f"{a / b:.2f} (1 / {b / a:.1f})" for a, b in (*both, tuple(above)))])
    head = ["method", "program", "runs", "wall s", "cpu s", "anonymous MB", "above torch", "resident MB"]
    text = (
        f"A Llama of {shape['parameters'] / 1e6:.0f}M parameters ({shape['hidden']} wide, {shape['layers']} layers), "
        f"bf16: a base of {shape['parameters'] * 2 / 1e9:.2f} GB and {shape['experts']} experts, read from the page "
        "cache. Medians over the runs; the programs took turns. Wall and processor seconds, from the start of the "
        "process to its end; megabytes (10⁶) at their peak, anonymous (RssAnon) and resident, which also counts the "
        f"pages of mapped inputs. An interpreter with torch imported has {idle:.0f} MB anonymous."
        f"\n\n{report.table(head, rows)}\n\n"
    )
    head = ["emkit / mergekit", "wall", "cpu", "anonymous", "anonymous above torch"]
    return text + (report.table(head, ratios) + "\n\n" if ratios else "")


def _forms(entries: list[dict]) -> str:
    seconds = [[entry[form]["iterations_s"] for form in (*FORMS, RIDGE)] for entry in entries]
    sizes = [f"{entry['rows']} × {entry['columns']}" for entry in entries]
    block = [sum(n * pair[i] for n, pair in zip(BLOCK, seconds, strict=True)) for i in range(len(FORMS) + 1)]
    cells = [
        [size, f"{ours:.2f}", f"{direct:.2f}", f"{direct / ours:.1f}", f"{ridge:.2f}", f"{ours / ridge:.1f}"]
        for size, (ours, direct, ridge) in zip([*sizes, "a block's seven matrices"], [*seconds, block], strict=True)
    ]
    text = (
        f"WUDI, {entries[0]['iterations']} Adam steps, K = {entries[0]['experts']}: seconds that the Gram form (its "
        "set-up included) and the direct form take; and the one solution of Ridge, the method `ridge`.\n\n"
    )
    head = ["matrix", "Gram form s", "direct form s", "direct / Gram", "ridge s", "Gram / ridge"]
    return text + report.table(head, cells) + "\n"
