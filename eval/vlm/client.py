"""Prompts and scores from VLMEvalKit, through a worker process that loads it once (never imported here).

The first call starts the worker; later calls, also of other processes, find it by a unix socket in a private
folder under the temporary directory.  A worker that died, however it died, is replaced by the next call; one that
is at a request for longer than it may be is killed with its process group (:mod:`eval.vlm.watch`).
"""

import base64
import csv
import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from emkit.errors import UserError
from emkit.files import atomic_write, lock, sha256_file
from eval.vlm import benchmarks
from eval.vlm.watch import Watch

REQUEST_SECONDS = 1800.0  # for one request, unless the protocol gives another `request_seconds`
START_SECONDS = 300.0
_PACKAGE_ROOT = Path(__file__).parents[2]
_CARRIED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "VIRTUAL_ENV", "LD_LIBRARY_PATH", "SYSTEMROOT")


class NoJudge(UserError):
    """The judge did not answer: the cell's status is "no judge", and this is its reason."""


@dataclass(frozen=True)
class Prompt:
    """One question as VLMEvalKit puts it: the item's index, its picture (RGB) and the text."""

    index: str
    image: Image.Image
    text: str


@dataclass(frozen=True)
class Evaluation:
    """A scored column: value and stderr in percent, n items, and each item's score (see :mod:`eval.stats`)."""

    value: float
    n: int
    stderr: float
    items: list[dict]
    harness: dict


def prompts(data_dir: str | Path, benchmark: str, seconds: float = REQUEST_SECONDS) -> list[Prompt]:
    """Every item of ``benchmark`` as its dataset class's own ``build_prompt`` makes it, in the TSV's order.

    The texts are kept in ``data_dir/prompts/<benchmark>.jsonl`` for as long as the TSV and the harness are the same.
    Raises :class:`UserError` when that takes the worker more than ``seconds``.
    """
    data_dir, known = _folder(data_dir), benchmarks.get(benchmark)
    tsv, kept = data_dir / known.tsv, data_dir / "prompts" / f"{benchmark}.jsonl"
    if not tsv.is_file():
        raise UserError(f"no benchmark data {tsv}: write it with `python -m eval data RECIPE --split SPLIT`")
    header = {"benchmark": benchmark, "tsv_sha256": sha256_file(tsv), "harness": _code_sha256()}
    lines = _kept(kept, header)
    if lines is None:
        lines = _ask(data_dir, {"do": "prompts", "benchmark": benchmark}, seconds)
        with atomic_write(kept) as part:
            part.write_text("".join(json.dumps(line) + "\n" for line in [header, *lines]), encoding="utf-8")
    images = _images(tsv)
    return [Prompt(line["index"], _decode(images, line["row"], tsv), line["text"]) for line in lines]


def evaluate(
    data_dir: str | Path,
    benchmark: str,
    predictions: dict[str, str],
    judge_url: str | None = None,
    seconds: float = REQUEST_SECONDS,
) -> Evaluation:
    """Score one row's answers with the class's own ``evaluate``; ``predictions`` maps every prompt's index to a text.

    ``judge_url`` is the judge's whole path (:func:`eval.judge.running`), needed by MathVista and MATH-Vision.
    The harness's own files live in a temporary folder for the time of the call.
    Raises :class:`NoJudge` when the judge did not answer, :class:`UserError` for any other failure, also for scoring
    that takes the worker more than ``seconds``.
    """
    benchmarks.get(benchmark)
    if not all(isinstance(text, str) for text in predictions.values()):
        raise UserError(f"{benchmark}: a prediction is no text")
    texts = {str(index): text for index, text in predictions.items()}
    request = {"do": "evaluate", "benchmark": benchmark, "predictions": texts, "judge_url": judge_url}
    return Evaluation(**_ask(_folder(data_dir), request, seconds))


def versions(data_dir: str | Path) -> dict[str, str]:
    """Versions of the harness and its numerical packages, as the worker sees them."""
    return _ask(_folder(data_dir), {"do": "versions"}, REQUEST_SECONDS)


# ------------------------------------------------------------------------------------------- prompts
def _folder(data_dir: str | Path) -> Path:
    data_dir = Path(data_dir).resolve()
    if not data_dir.is_dir():
        raise UserError(f"no data folder {data_dir}: write it with `python -m eval data RECIPE --split SPLIT`")
    return data_dir


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


def _decode(images: list[str], row: int, tsv: Path) -> Image.Image:
    try:
        return Image.open(io.BytesIO(base64.b64decode(images[row], validate=True))).convert("RGB")
    except (ValueError, OSError) as error:
        raise UserError(f"{tsv}: the image of row {row + 1} cannot be read; write the data again") from error


# -------------------------------------------------------------------------------------------- worker
def _ask(data_dir: Path, request: dict, seconds: float):
    """Send one request; start or replace the worker as often as it takes, three times at most.

    A worker that took too long over another's request is replaced as one that died is; over ours, it is an error.
    """
    request = request | {"id": uuid.uuid4().hex, "seconds": seconds}
    line, work = json.dumps(request).encode() + b"\n", socket_path(data_dir).with_suffix(".work")
    for _ in range(3):
        connection, worker = _connect(data_dir)
        with Watch(worker, work, request["id"], seconds) as watch:
            try:
                with connection, connection.makefile("rwb") as stream:
                    stream.write(line)
                    stream.flush()
                    reply = stream.readline()
            except OSError:
                reply = b""
        if reply.endswith(b"\n"):
            return _result(json.loads(reply), data_dir)
        if watch.killed_ours:
            what = request.get("benchmark", request["do"])
            raise UserError(
                f"VLMEvalKit was at {what} for more than {seconds:g} s, so its worker was killed: "
                "if it needs that long, raise request_seconds in the protocol"
            )
    raise UserError(f"the scoring worker died three times over the same request; its log ends:\n{_log_tail(data_dir)}")


def _result(reply: dict, data_dir: Path):
    if "ok" in reply:
        return reply["ok"]
    kind, message = reply["error"]["kind"], reply["error"]["message"]
    if kind == "no judge":
        raise NoJudge(message)
    if kind == "user":
        raise UserError(message)
    raise UserError(f"VLMEvalKit failed: {message}; its log ends:\n{_log_tail(data_dir)}")


def socket_path(data_dir: Path) -> Path:
    """Where the worker of ``data_dir`` listens: short (a unix socket's limit), private, and new with every code."""
    root = Path(tempfile.gettempdir())
    if len(str(root)) > 60:
        root = Path("/tmp")
    folder = root / f"emkit-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o077:
        raise UserError(f"{folder} must be a private folder of yours: remove it, or set TMPDIR to another folder")
    key = "\n".join((str(data_dir), sys.executable, str(_PACKAGE_ROOT), _code_sha256()))
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.sock"


@cache
def _code_sha256() -> str:
    """Hash of this package's code and the harness's version: with either changed, worker and prompts are others."""
    from importlib.metadata import PackageNotFoundError, version

    digest = hashlib.sha256()
    for file in [*sorted(Path(__file__).parent.glob("*.py")), Path(__file__).parents[1] / "stats.py"]:
        digest.update(file.read_bytes())
    try:
        digest.update(version("ms-vlmeval").encode())
    except PackageNotFoundError as error:
        raise UserError("VLMEvalKit is not installed: run `make setup` (package ms-vlmeval)") from error
    return digest.hexdigest()


def _connect(data_dir: Path) -> tuple[socket.socket, int]:
    """A connection to the worker, and the worker's process id (that of its group, too)."""
    path = socket_path(data_dir)
    with lock(path.with_suffix(".lock")):
        connection = _dial(path) or _start(data_dir, path)
        return connection, int(path.with_suffix(".alive").read_text(encoding="utf-8"))


def _dial(path: Path) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
        return connection
    except OSError:
        connection.close()
        return None


def _start(data_dir: Path, path: Path) -> socket.socket:
    """Start a worker in a process group of its own (unless one is just starting) and wait until it listens."""
    command = [sys.executable, "-m", "eval.vlm.worker", "--data", str(data_dir), "--socket", str(path)]
    with open(path.with_suffix(".log"), "ab") as log:
        log.truncate(0)
        process = subprocess.Popen(
            command,
            cwd=_PACKAGE_ROOT,
            env=_environment(data_dir),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=0,
        )
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if connection := _dial(path):
            return connection
        if process.poll() not in (None, 0):  # 0: another worker, started by a client that was killed, holds the place
            raise UserError(f"the scoring worker could not start; its log ends:\n{_log_tail(data_dir)}")
        time.sleep(0.05)
    process.kill()
    raise UserError(f"the scoring worker did not start in {START_SECONDS:.0f} s; its log ends:\n{_log_tail(data_dir)}")


def _environment(data_dir: Path) -> dict[str, str]:
    """The worker's whole environment: no key but a dummy, no proxy, no network for the hub, one thread."""
    kept = {name: os.environ[name] for name in _CARRIED if name in os.environ}
    return kept | {
        "LMUData": str(data_dir),
        "OPENAI_API_KEY": "none",
        "PRED_FORMAT": "tsv",
        "EVAL_FORMAT": "csv",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "NO_PROXY": "127.0.0.1",
        "MPLBACKEND": "Agg",
        "OMP_NUM_THREADS": "1",
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": str(_PACKAGE_ROOT),
    }


def _log_tail(data_dir: Path, lines: int = 12) -> str:
    try:
        return "\n".join(socket_path(data_dir).with_suffix(".log").read_text(errors="replace").splitlines()[-lines:])
    except OSError:
        return "(no log)"
