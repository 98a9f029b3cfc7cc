"""VLMEvalKit itself: the only module that imports ``vlmeval``, and only ever inside the worker process.

``import vlmeval`` loads 200 dataset modules, the wrappers of 300 models and torch (14 s, 1 GB) and switches off TLS
verification for the process.  The ten columns live in two of those modules, so the three package ``__init__`` files
are passed over (an empty package with the same path stands in for each) and the modules themselves are imported,
unchanged: 3 s, 0.2 GB, TLS left alone.  A test compares the classes with those of the full import.
"""

import importlib
import importlib.metadata
import importlib.util
import logging
import os
import shutil
import sys
import tempfile
import types
from functools import cache, partial
from pathlib import Path

from emkit.errors import UserError
from eval import stats
from eval.vlm import benchmarks, mends
from eval.vlm.benchmarks import JUDGE_MODEL, Benchmark
from eval.workers.text import whole

JUDGE_THREADS = 64  # the harness waits up to 0.5 s before each call, so many must wait at once
_MODULES = {
    "smp_file": "vlmeval.smp.file",
    "smp_misc": "vlmeval.smp.misc",
    "image_base": "vlmeval.dataset.image_base",
    "image_vqa": "vlmeval.dataset.image_vqa",
    "refcoco": "vlmeval.dataset.refcoco",
    "mathv": "vlmeval.dataset.utils.mathv",
    "mathvista": "vlmeval.dataset.utils.mathvista",
    "vqa_eval": "vlmeval.dataset.utils.vqa_eval",
    "judge_util": "vlmeval.dataset.utils.judge_util",
    "qwen2_vl": "vlmeval.vlm.qwen2_vl.prompt",
}


class NoJudge(Exception):
    """The judge could not be reached, or failed on an item: the column has no score."""


@cache
def modules() -> dict[str, types.ModuleType]:
    """The VLMEvalKit modules in use, imported without the rest of the package and mended."""
    spec = importlib.util.find_spec("vlmeval")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("VLMEvalKit is not installed: run `make setup` (package ms-vlmeval)")
    folder = Path(next(iter(spec.submodule_search_locations)))
    for name in ("vlmeval", "vlmeval.dataset", "vlmeval.api", "vlmeval.vlm", "vlmeval.vlm.qwen2_vl"):
        package = types.ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = package
    loaded = {short: importlib.import_module(name) for short, name in _MODULES.items()}
    api = sys.modules["vlmeval.api"]
    api.OpenAIWrapper = importlib.import_module("vlmeval.api.gpt").OpenAIWrapper
    api.HFChatModel = api.SiliconFlowAPI = None  # build_judge imports the names; gpt-4o-mini uses neither
    sys.modules["vlmeval.dataset"].DATASET_TYPE = _dataset_type  # the model's prompt rules ask for it
    mends.apply(loaded)
    logging.getLogger("vlmeval").setLevel(logging.WARNING)  # at INFO the harness logs the judge's key
    return loaded


def _dataset_type(dataset: str, *, default: str = "MCQ") -> str:
    """``vlmeval.dataset.DATASET_TYPE`` for the ten columns: its classes' own ``TYPE``."""
    found = {b.dataset: (b.module, b.cls) for b in benchmarks.BENCHMARKS.values()}
    if dataset not in found:
        return default
    module, cls = found[dataset]
    return getattr(modules()[module], cls).TYPE


def versions() -> dict[str, str]:
    """Versions of the harness and of what its metrics compute with."""
    return {name: importlib.metadata.version(name) for name in ("ms-vlmeval", "pandas", "numpy", "sympy")}


@cache
def _dataset(data_dir: str, module: str, cls: str, name: str, tsv_mtime_ns: int):
    """The class's own object over the TSV as it is now (folder and time key the cache; LMUData names the folder)."""
    del data_dir, tsv_mtime_ns
    dataset_class = getattr(modules()[module], cls)
    dataset_class.DATASET_MD5[name] = None  # the TSV is ours; the stock hash is that of the published file
    try:
        return dataset_class(dataset=name)
    except (KeyError, ValueError, AssertionError, IndexError) as error:
        raise UserError(f"{name}.tsv is no {name} table as VLMEvalKit reads it: {error!r}") from error


def open_dataset(data_dir: str, benchmark: Benchmark):
    """The dataset object and its rows (DataFrame, ``index`` as text) that belong to ``benchmark``."""
    path = Path(data_dir) / benchmark.tsv
    if not path.is_file():
        raise UserError(f"no benchmark data {path}: write it with `python -m eval data RECIPE --split SPLIT`")
    mtime = path.stat().st_mtime_ns
    dataset = _dataset(data_dir, benchmark.module, benchmark.cls, benchmark.dataset, mtime)
    rows = dataset.data
    if benchmark.split:
        rows = rows[rows["split"] == benchmark.split]
    if rows.empty:
        raise UserError(f"{path} holds no items of {benchmark.name}")
    return dataset, rows


def prompts(data_dir: str, name: str, rule: str = "dataset") -> list[dict]:
    """Each item's ``{"index", "row", "text"}``: ``row`` counts the TSV's rows from 0, ``text`` is the class's own.

    With the ``rule`` "qwen2_vl" it is VLMEvalKit's Qwen2-VL model that puts the questions of the sets that it has a
    prompt for, as in VLMEvalKit's own inference.
    """
    dataset, rows = open_dataset(data_dir, benchmarks.get(name))
    dataset.dump_image = lambda line: []  # the pictures stay in the TSV; only the class's text is wanted
    build = dataset.build_prompt
    if rule == "qwen2_vl":
        asking = modules()["qwen2_vl"].Qwen2VLPromptMixin()
        asking.set_dump_image(lambda line: [])
        if asking.use_custom_prompt(benchmarks.get(name).dataset):
            build = partial(asking.build_prompt, dataset=benchmarks.get(name).dataset)
    made = []
    for row, (_, line) in zip(rows.index, rows.iterrows(), strict=True):
        (message,) = build(line)
        made.append({"index": str(line["index"]), "row": int(row), "text": message["value"]})
    return made


def evaluate(data_dir: str, name: str, predictions: dict[str, str], judge_url: str | None) -> dict:
    """Score ``predictions`` (index -> text) with the class's own ``evaluate``.

    Returns ``{"value", "stderr", "n", "items", "harness"}`` (percent; items as in :mod:`eval.stats`).
    Raises :class:`NoJudge` when the judge did not answer, RuntimeError when the items disagree with the class.
    """
    benchmark = benchmarks.get(name)
    dataset, rows = open_dataset(data_dir, benchmark)
    indices = [str(index) for index in rows["index"]]
    if set(predictions) != set(indices):
        missing, extra = set(indices) - set(predictions), set(predictions) - set(indices)
        raise UserError(f"{name} needs one prediction per item: {len(missing)} missing, {len(extra)} of unknown items")
    table = rows.drop(columns=[column for column in ("image", "image_path") if column in rows])
    table = table.assign(prediction=[whole(predictions[index]) for index in indices])
    home, folder = os.getcwd(), tempfile.mkdtemp(prefix="emkit-score-")
    try:
        os.chdir(folder)  # the classes find their files by replacing ".tsv" anywhere in the path
        modules()["smp_file"].dump(table, "predictions.tsv")
        reported, scored = _score(benchmark, dataset, judge_url)
    finally:
        os.chdir(home)
        shutil.rmtree(folder, ignore_errors=True)
    if [str(index) for index in scored["index"]] != indices or list(scored["prediction"]) != list(table["prediction"]):
        raise RuntimeError(f"{name}: the prediction file did not come back as it was written")
    items = _items(benchmark, scored)
    value, stderr, n = stats.estimate(items)
    _compare(benchmark, reported, scored, items, value)
    return {
        "value": value,
        "stderr": stderr,
        "n": n,
        "items": items,
        "harness": {"name": "VLMEvalKit", "version": versions()["ms-vlmeval"], "dataset": benchmark.dataset},
    }


def _score(benchmark: Benchmark, dataset, judge_url: str | None):
    """The class's report as ``{row name: percent}`` and the table of items with a ``score`` column in [0, 1]."""
    load, file = modules()["image_vqa"].load, "predictions.tsv"
    if benchmark.judged:
        return _score_judged(benchmark, dataset, file, judge_url)
    report = dataset.evaluate(file)
    if benchmark.module == "refcoco":
        scored = load("predictions_detail.tsv")
        scored["score"] = [float(hit) for hit in scored["hit"]]
        return dict(zip(report["Split"], report["Precision@1"], strict=True)), scored
    vqa = modules()["vqa_eval"]
    if benchmark.cls == "VizWiz":  # leaves no per-item file: its own functions once more
        scored = load(file)
        results = [vqa.process_line({**line, "answer": line["answers"]}) for line in scored.to_dict("records")]
    else:
        scored = load("predictions_results.tsv")
        results = [{"match": _matches(text)} for text in scored["eval_match"]]
        scored["prediction"] = load(file)["prediction"]
    scored["score"] = [float(hit) for hit in vqa.hit_calculate(results, benchmark.dataset)]
    return {column: float(report[column].iloc[0]) for column in report}, scored


def _matches(text: str) -> list[float]:
    """``eval_match`` as the class wrote it: a list of floats or booleans."""
    return [float(match) for match in mends.literal(text)]


def _score_judged(benchmark: Benchmark, dataset, file: str, judge_url: str | None):
    if not judge_url:
        raise NoJudge(f"{benchmark.name} is graded with a judge and none was given")
    os.environ["OPENAI_API_BASE"] = judge_url
    try:
        report = dataset.evaluate(file, model=JUDGE_MODEL, nproc=JUDGE_THREADS, retry=1, wait=0.05)
    except AssertionError as error:  # "evaluation requires a working OPENAI API"
        raise NoJudge(f"the judge at {judge_url} does not answer") from error
    scored = modules()["image_vqa"].load(f"predictions_{JUDGE_MODEL}.tsv")
    failed = [row for row in scored["log"] if "All 5 retries failed" in row]
    if failed:  # the class would score these as wrong
        raise NoJudge(f"the judge failed on {len(failed)} of {len(scored)} items of {benchmark.name}")
    grader = modules()["mathvista" if benchmark.cls == "MathVista" else "mathv"]
    scored["score"] = [float(bool(grader.post_check(line))) for _, line in scored.iterrows()]
    name = "Task&Skill" if benchmark.cls == "MathVista" else "Subject"
    return dict(zip(report[name], report["acc"], strict=True)), scored


def _items(benchmark: Benchmark, scored) -> list[dict]:
    """Per-item results; ``groups`` holds those of the benchmark's parts that an item belongs to."""
    items = []
    for line in scored.to_dict("records"):
        names = _categories(benchmark, line)
        items.append(
            {
                "index": str(line["index"]),
                "prediction": line["prediction"],
                "score": line["score"],
                "groups": [part for part in benchmark.parts if part in names],
            }
        )
    absent = [part for part in benchmark.parts if not any(part in item["groups"] for item in items)]
    if absent:
        raise UserError(f"{benchmark.tsv} has no item of: {', '.join(absent)}; {benchmark.name} is the mean over these")
    return items


def _categories(benchmark: Benchmark, line: dict) -> list[str]:
    if benchmark.cls == "MathVision":
        return [line["category"]]
    if benchmark.cls == "MathVista":
        try:
            skills = mends.literal(line["skills"])
        except SyntaxError:  # as MathVista_acc does
            skills = [line["skills"]]
        return [line["task"], *skills]
    return []


def _compare(benchmark: Benchmark, reported: dict[str, float], scored, items: list[dict], value: float) -> None:
    """The class's own numbers against the same numbers from the items: any difference is an error, not a score."""
    if benchmark.parts:
        pairs = {}
        for part in benchmark.parts:
            scores = [item["score"] for item in items if part in item["groups"]]
            pairs[part] = 100 * sum(scores) / len(scores)
        pairs["Overall"] = 100 * float(scored["score"].mean())
        expected = sum(reported[part] for part in benchmark.parts) / len(benchmark.parts)
    else:
        expected = reported[benchmark.split or "Overall"]
        pairs = {benchmark.split or "Overall": value}
    for part, ours in {**pairs, None: value}.items():
        theirs = expected if part is None else reported[part]
        if abs(ours - theirs) > 1e-9 * max(1.0, abs(theirs)):
            raise RuntimeError(f"{benchmark.name} {part or ''}: VLMEvalKit reports {theirs}, its items give {ours}")
