"""A column's prompts and scores by VLMEvalKit's classes (:mod:`eval.vlm.library`), inside the worker process alone."""

import importlib.metadata
import os
import shutil
import tempfile
from functools import cache, partial
from pathlib import Path
from typing import Any

from emkit.errors import UserError
from eval import stats
from eval.columns.kinds import VLMEvalKit
from eval.vlm import patches
from eval.vlm.library import TYPES, modules
from eval.workers.text import whole

JUDGE_MODEL = "gpt-4o-mini"  # the harness asks for gpt-4o-mini-2024-07-18, as the paper's evaluation does
_FILE = "predictions.tsv"
_STOCK_MD5: dict[tuple[str, str], str | None] = {}
JUDGE_THREADS = 64  # the harness waits up to 0.5 s before each call, so many must wait at once


class NoJudge(Exception):
    """The judge could not be reached, or failed on an item: the column has no score."""


def versions() -> dict[str, str]:
    """Versions of the harness and of what its metrics compute with."""
    return {name: importlib.metadata.version(name) for name in ("ms-vlmeval", "pandas", "numpy", "sympy")}


def published(column: VLMEvalKit) -> dict[str, str | None]:
    """Where VLMEvalKit has the column's set, and its MD5."""
    module, cls = column.dataset_class.split(".")
    found = getattr(modules()[module], cls)
    stock = {"url": found.DATASET_URL.get(column.dataset), "md5": _stock_md5(found, column.dataset)}
    return {key: getattr(column, key) or value for key, value in stock.items()}


def _stock_md5(found: Any, name: str) -> str | None:
    """The class's own hash of a published file, also after it was set aside."""
    return _STOCK_MD5.setdefault((found.__name__, name), found.DATASET_MD5.get(name))


@cache
def _dataset(data_dir: str, dataset_class: str, name: str, tsv_mtime_ns: int):
    """The class's own object over the TSV as it is now (folder and time key the cache; LMUData names the folder)."""
    del data_dir, tsv_mtime_ns
    module, cls = dataset_class.split(".")
    found = getattr(modules()[module], cls)
    _stock_md5(found, name)
    found.DATASET_MD5[name] = None  # the manifest says what the TSV is: drawn here, or found to be the published one
    TYPES[name] = found.TYPE
    try:
        return found(dataset=name)
    except (KeyError, ValueError, AssertionError, IndexError) as error:
        raise UserError(f"{name}.tsv is no {name} table as VLMEvalKit reads it: {error!r}") from error


def open_dataset(data_dir: str, column: VLMEvalKit):
    """The dataset object and its rows (DataFrame, ``index`` as text) that belong to ``column``."""
    path = Path(data_dir) / column.file
    if not path.is_file():
        raise UserError(f"no benchmark data {path}: write it with `python -m eval data RECIPE --split SPLIT`")
    dataset = _dataset(data_dir, column.dataset_class, column.dataset, path.stat().st_mtime_ns)
    rows = dataset.data
    if column.split:
        rows = rows[rows["split"] == column.split]
    if rows.empty:
        raise UserError(f"{path} holds no items of {column.name}")
    return dataset, rows


def prompts(data_dir: str, column: VLMEvalKit) -> list[dict]:
    """Each item's ``{"index", "row", "text"}``: ``row`` counts the TSV's rows from 0, ``text`` is the class's own.

    With the ``prompt_rule`` "qwen2_vl" it is VLMEvalKit's Qwen2-VL model that puts the questions of the sets that it
    has a prompt for, as in VLMEvalKit's own inference.
    """
    dataset, rows = open_dataset(data_dir, column)
    dataset.dump_image = lambda line: []  # the pictures stay in the TSV; only the class's text is wanted
    build = dataset.build_prompt
    if column.prompt_rule == "qwen2_vl":
        asking = modules()["qwen2_vl"].Qwen2VLPromptMixin()
        asking.set_dump_image(lambda line: [])
        if asking.use_custom_prompt(column.dataset):
            build = partial(asking.build_prompt, dataset=column.dataset)
    made = []
    for row, (_, line) in zip(rows.index, rows.iterrows(), strict=True):
        (message,) = build(line)
        made.append({"index": str(line["index"]), "row": int(row), "text": message["value"]})
    return made


def evaluate(data_dir: str, column: VLMEvalKit, predictions: dict[str, str], judge_url: str | None) -> dict:
    """Score ``predictions`` (index -> text) with the class's own ``evaluate``.

    Returns ``{"value", "stderr", "n", "items", "harness"}`` (percent; items as in :mod:`eval.stats`).
    Raises :class:`NoJudge` when the judge did not answer, RuntimeError when the items disagree with the class.
    """
    name, (dataset, rows) = column.name, open_dataset(data_dir, column)
    indices = [str(index) for index in rows["index"]]
    if set(predictions) != set(indices):
        missing, extra = set(indices) - set(predictions), set(predictions) - set(indices)
        raise UserError(f"{name} needs one prediction per item: {len(missing)} missing, {len(extra)} of unknown items")
    table = rows.drop(columns=[part for part in ("image", "image_path") if part in rows])
    table = table.assign(prediction=[whole(predictions[index]) for index in indices])
    home, folder = os.getcwd(), tempfile.mkdtemp(prefix="emkit-score-")
    try:
        os.chdir(folder)  # the classes find their files by replacing ".tsv" anywhere in the path
        modules()["smp_file"].dump(table, _FILE)
        reported, scored = _READERS[column.dataset_class](column, dataset, judge_url)
    finally:
        os.chdir(home)
        shutil.rmtree(folder, ignore_errors=True)
    if [str(index) for index in scored["index"]] != indices or list(scored["prediction"]) != list(table["prediction"]):
        raise RuntimeError(f"{name}: the prediction file did not come back as it was written")
    items = _items(column, scored)
    value, stderr, n = stats.estimate(items)
    _compare(column, reported, scored, items, value)
    return {
        "value": value,
        "stderr": stderr,
        "n": n,
        "items": items,
        "harness": {"name": "VLMEvalKit", "version": versions()["ms-vlmeval"], "dataset": column.dataset},
    }


# What a class reports, as {name: percent} with its total under `column.split or "Overall"`, and the table of items with
# a `score` in [0, 1]: each class leaves these in files of its own.
def _vqa(column: VLMEvalKit, dataset, judge_url: str | None):
    report = dataset.evaluate(_FILE)
    scored = modules()["image_vqa"].load("predictions_results.tsv")
    scored["prediction"] = modules()["image_vqa"].load(_FILE)["prediction"]
    results = [{"match": [float(match) for match in patches.literal(text)]} for text in scored["eval_match"]]
    return _vqa_hits(column, report, scored, results)


def _vizwiz(column: VLMEvalKit, dataset, judge_url: str | None):
    """It leaves no file of items: its own functions once more."""
    report = dataset.evaluate(_FILE)
    scored = modules()["image_vqa"].load(_FILE)
    process = modules()["vqa_eval"].process_line
    results = [process({**line, "answer": line["answers"]}) for line in scored.to_dict("records")]
    return _vqa_hits(column, report, scored, results)


def _vqa_hits(column: VLMEvalKit, report, scored, results: list[dict]):
    hits = modules()["vqa_eval"].hit_calculate(results, column.dataset)
    scored["score"] = [float(hit) for hit in hits]
    return _reported(column, report), scored


def _refcoco(column: VLMEvalKit, dataset, judge_url: str | None):
    report = dataset.evaluate(_FILE)
    scored = modules()["image_vqa"].load("predictions_detail.tsv")
    scored["score"] = [float(hit) for hit in scored["hit"]]
    return dict(zip(report["Split"], report["Precision@1"], strict=True)), scored


def _multiple_choice(column: VLMEvalKit, dataset, judge_url: str | None):
    """Read by exact matching, as the class does without a judge; its own numbers are shares of 1."""
    report = dataset.evaluate(_FILE, model="exact_matching")
    scored = _in_order(modules()["image_mcq"].load("predictions_exact_matching_result.tsv"))
    scored["score"] = [float(hit) for hit in scored["hit"]]
    return {part: 100 * value for part, value in _reported(column, report).items()}, scored


def _yes_or_no(column: VLMEvalKit, dataset, judge_url: str | None):
    """Read by exact matching, as the class does without a judge."""
    report = dataset.evaluate(_FILE, model="exact_matching")
    scored = _in_order(modules()["image_yorn"].load("predictions_auxmatch.tsv"))
    scored["score"] = [float(hit) for hit in scored["score"]]
    return _reported(column, report), scored


def _in_order(scored):
    """The items in the order of the predictions: a class may sort them."""
    order = list(modules()["image_vqa"].load(_FILE)["index"])
    return scored.set_index(scored["index"].astype(str)).loc[order].reset_index(drop=True)


def _reported(column: VLMEvalKit, report) -> dict[str, float]:
    """The column's number in a class's report: by the rows' splits, or one row whose columns are the numbers."""
    total = column.split or "Overall"
    if column.report not in report:
        raise UserError(f"{column.name}.report: VLMEvalKit reports {', '.join(report)}, not {column.report}")
    numbers = {str(split): float(value) for split, value in zip(report.get("split", [total]), report[column.report])}
    return numbers if len(numbers) > 1 else {total: next(iter(numbers.values()))}


def _judged(column: VLMEvalKit, dataset, judge_url: str | None):
    if not judge_url:
        raise NoJudge(f"{column.name} is graded with a judge and none was given")
    os.environ["OPENAI_API_BASE"] = judge_url
    try:
        report = dataset.evaluate(_FILE, model=JUDGE_MODEL, nproc=JUDGE_THREADS, retry=1, wait=0.05)
    except AssertionError as error:  # "evaluation requires a working OPENAI API"
        raise NoJudge(f"the judge at {judge_url} does not answer") from error
    scored = modules()["image_vqa"].load(f"predictions_{JUDGE_MODEL}.tsv")
    failed = [row for row in scored["log"] if "All 5 retries failed" in row]
    if failed:  # the class would score these as wrong
        raise NoJudge(f"the judge failed on {len(failed)} of {len(scored)} items of {column.name}")
    vista = column.dataset_class == "image_vqa.MathVista"
    grader = modules()["mathvista" if vista else "mathv"]
    scored["score"] = [float(bool(grader.post_check(line))) for _, line in scored.iterrows()]
    return dict(zip(report["Task&Skill" if vista else "Subject"], report["acc"], strict=True)), scored


_READERS = {
    "image_mcq.ImageMCQDataset": _multiple_choice,
    "image_vqa.ImageVQADataset": _vqa,
    "image_vqa.MathVision": _judged,
    "image_vqa.MathVista": _judged,
    "image_vqa.VizWiz": _vizwiz,
    "image_yorn.ImageYORNDataset": _yes_or_no,
    "refcoco.RefCOCODataset": _refcoco,
}


def _items(column: VLMEvalKit, scored) -> list[dict]:
    """Per-item results; ``groups`` holds those of the benchmark's parts that an item belongs to."""
    items = []
    for line in scored.to_dict("records"):
        names = _categories(column, line)
        items.append(
            {
                "index": str(line["index"]),
                "prediction": line["prediction"],
                "score": line["score"],
                "groups": [part for part in column.parts if part in names],
            }
        )
    absent = [part for part in column.parts if not any(part in item["groups"] for item in items)]
    if absent:
        raise UserError(f"{column.file} has no item of: {', '.join(absent)}; {column.name} is the mean over these")
    return items


def _categories(column: VLMEvalKit, line: dict) -> list[str]:
    if column.dataset_class == "image_vqa.MathVision":
        return [line["category"]]
    if column.dataset_class == "image_vqa.MathVista":
        try:
            skills = patches.literal(line["skills"])
        except SyntaxError:  # as MathVista_acc does
            skills = [line["skills"]]
        return [line["task"], *skills]
    return []


def _compare(column: VLMEvalKit, reported: dict[str, float], scored, items: list[dict], value: float) -> None:
    """The class's own numbers against the same numbers from the items: any difference is an error, not a score."""
    if column.parts:
        pairs = {}
        for part in column.parts:
            scores = [item["score"] for item in items if part in item["groups"]]
            pairs[part] = 100 * sum(scores) / len(scores)
        pairs["Overall"] = 100 * float(scored["score"].mean())
        expected = sum(reported[part] for part in column.parts) / len(column.parts)
    else:
        expected = reported[column.split or "Overall"]
        pairs = {column.split or "Overall": value}
    theirs_and_ours = {part: (reported[part], ours) for part, ours in pairs.items()} | {"": (expected, value)}
    for part, (theirs, ours) in theirs_and_ours.items():
        if abs(ours - theirs) > 1e-9 * max(1.0, abs(theirs)):
            raise RuntimeError(f"{column.name} {part}: VLMEvalKit reports {theirs}, its items give {ours}")
