"""Prompts and scores from VLMEvalKit, through a worker process that loads it once (never imported here).

One worker a machine and data folder serves all processes (:mod:`eval.workers.client`).
"""

import base64
import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from emkit.errors import UserError
from emkit.files import atomic_write, sha256_file
from eval.columns.kinds import VLMEvalKit
from eval.judge.errors import NoJudge
from eval.workers.client import Evaluation, Refused, Service, code, service

REQUEST_SECONDS = 1800.0  # for one request, unless the protocol gives another `request_seconds`


@dataclass(frozen=True)
class Prompt:
    """One question as VLMEvalKit puts it: the item's index and the text; ``picture`` is as the TSV has it."""

    index: str
    text: str
    picture: str
    where: str

    @property
    def image(self) -> Image.Image:
        """The picture (RGB), decoded now; ``UserError`` for one that cannot be read."""
        try:
            return Image.open(io.BytesIO(base64.b64decode(self.picture, validate=True))).convert("RGB")
        except (ValueError, OSError) as error:
            raise UserError(f"{self.where} cannot be read; write the data again") from error


class Pictures(Sequence[Image.Image]):
    """The pictures of prompts, each decoded when it is asked for."""

    def __init__(self, prompts: Sequence[Prompt]):
        self._prompts = prompts

    def __len__(self) -> int:
        return len(self._prompts)

    def __getitem__(self, at):
        found = self._prompts[at]
        return found.image if isinstance(found, Prompt) else [prompt.image for prompt in found]


def prompts(data_dir: str | Path, column: VLMEvalKit, seconds: float = REQUEST_SECONDS) -> list[Prompt]:
    """Every item of ``column`` as its ``prompt_rule`` says, in the TSV's order: as its dataset class's own
    ``build_prompt`` makes it, or as VLMEvalKit's Qwen2-VL model does.

    The texts are kept in ``data_dir/prompts/<column>.jsonl`` for as long as the TSV and the harness are the same.
    Raises :class:`UserError` when that takes the worker more than ``seconds``.
    """
    data_dir = _service(data_dir).folder
    tsv, kept = data_dir / column.file, data_dir / "prompts" / f"{column.name}.jsonl"
    if not tsv.is_file():
        raise UserError(f"no benchmark data {tsv}: write it with `python -m eval data RECIPE --split SPLIT`")
    asked = column.model_dump(mode="json")
    header = {"column": asked, "tsv_sha256": sha256_file(tsv), "harness": _code()}
    lines = _kept(kept, header)
    if lines is None:
        lines = _ask(data_dir, {"do": "prompts", "column": asked}, seconds)
        with atomic_write(kept) as part:
            part.write_text("".join(json.dumps(line) + "\n" for line in [header, *lines]), encoding="utf-8")
    images = _images(tsv)
    return [
        Prompt(line["index"], line["text"], images[line["row"]], f"{tsv}: the image of row {line['row'] + 1}")
        for line in lines
    ]


def evaluate(
    data_dir: str | Path,
    column: VLMEvalKit,
    predictions: dict[str, str],
    judge_url: str | None = None,
    seconds: float = REQUEST_SECONDS,
) -> Evaluation:
    """Score one row's answers with the class's own ``evaluate``; ``predictions`` maps every prompt's index to a text.

    ``judge_url`` is the judge's whole path (:func:`eval.judge.running`), needed by a judged column.
    The harness's own files live in a temporary folder for the time of the call.
    Raises :class:`NoJudge` when the judge did not answer, :class:`UserError` for any other failure, also for scoring
    that takes the worker more than ``seconds``.
    """
    if not all(isinstance(text, str) for text in predictions.values()):
        raise UserError(f"{column.name}: a prediction is not text")
    texts = {str(index): text for index, text in predictions.items()}
    asked = column.model_dump(mode="json")
    request = {"do": "evaluate", "column": asked, "predictions": texts, "judge_url": judge_url}
    return Evaluation(**_ask(data_dir, request, seconds))


def published(data_dir: str | Path, column: VLMEvalKit) -> tuple[str, str]:
    """Address and MD5 of the column's published set: the column's own, else VLMEvalKit's.

    Raises :class:`UserError` where neither says either.
    """
    found = _ask(data_dir, {"do": "published", "column": column.model_dump(mode="json")}, REQUEST_SECONDS)
    for key in ("url", "md5"):
        if not found[key]:
            raise UserError(f"{column.name}: VLMEvalKit has no {key} of {column.dataset}: give the column one")
    return found["url"], found["md5"]


def count(data_dir: str | Path, column: VLMEvalKit) -> int:
    """Items of the column in the data folder, as its class reads the table."""
    return _ask(data_dir, {"do": "count", "column": column.model_dump(mode="json")}, REQUEST_SECONDS)


def versions(data_dir: str | Path) -> dict[str, str]:
    """Versions of the harness and its numerical packages, as the worker sees them."""
    return _ask(data_dir, {"do": "versions"}, REQUEST_SECONDS)


# ------------------------------------------------------------------------------------------- prompts
def _kept(path: Path, header: dict) -> list[dict] | None:
    """The exported prompts, or None when there are none, or they are of another TSV or harness."""
    try:
        first, *lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    except (OSError, ValueError):
        return None
    return lines if first == header else None


def _images(tsv: Path) -> list[str]:
    """The TSV's image column: base64, or the index of the row whose picture is meant."""
    csv.field_size_limit(2**31 - 1)
    with open(tsv, encoding="utf-8", newline="") as file:
        rows = [(row["index"], row["image"]) for row in csv.DictReader(file, delimiter="\t")]
    by_index = dict(rows)
    return [by_index.get(image, image) if len(image) <= 64 else image for _, image in rows]


# -------------------------------------------------------------------------------------------- worker
def _service(data_dir: str | Path) -> Service:
    """No key but a dummy, no network for the hub, one thread."""
    own = {"LMUData": str(Path(data_dir).resolve()), "OPENAI_API_KEY": "none", "MPLBACKEND": "Agg"}
    return service("VLMEvalKit", "eval.vlm.worker", data_dir, _code(), **own, PRED_FORMAT="tsv", EVAL_FORMAT="csv")


def _ask(data_dir: str | Path, request: dict, seconds: float):
    """What the worker answers; :class:`NoJudge` and :class:`UserError` are its errors."""
    try:
        return _service(data_dir).ask(request, seconds, request.get("column", {}).get("name", request["do"]))
    except Refused as error:
        raise NoJudge(str(error)) from error


def socket_path(data_dir: Path) -> Path:
    """Where the worker of ``data_dir`` listens."""
    return _service(data_dir).socket_path


def _code() -> str:
    return code(("eval.vlm.worker",), "VLMEvalKit", "ms-vlmeval")
