"""Calibration files from columns' own questions: what a task's expert is asked, unlabeled, for a profile that says so.

The paper samples "unlabeled examples from the training or test sets" (Section 4.1), and the data files of its code are
named after its benchmarks. Questions and pictures are taken as the column's harness puts them; answers are not even
read. Each line says which item it is (``of``), so that a reader can tell which items of a column a fit has seen.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from emkit.errors import UserError
from emkit.files import atomic_dir, read_json, read_kept, sha256_file, sha256_json, write_json
from emkit.locks import lock
from emkit.sealed import hashes
from eval import columns, keys
from eval.asking import Prompt
from eval.items.fetching import placing
from eval.items.writer import write
from eval.plan import Plan
from eval.profile import Prompts

MANIFEST = "manifest.json"


def folder(plan: Plan) -> Path:
    """Where the files of the profile's calibration lie."""
    return Path(next(iter(plan.profile.calibration.files.values()))).parent


def _how(plan: Plan) -> Prompts:
    assert plan.profile.prompts is not None  # nobody else asks for files
    return plan.profile.prompts


def key(plan: Plan) -> str:
    """What the files are made from: the columns and how they are asked, the choice, and the code."""
    asked = _protocol(plan)
    published = any(column.published for column in asked.columns.values())
    rooms = sorted({module for column in asked.columns.values() for module in column.code})
    made = keys.prompting(("eval.prompts", *rooms))
    return sha256_json([_how(plan).model_dump(), asked.drawn(), keys.drawing(published), made])


def are_current(plan: Plan) -> bool:
    """Whether every file is there as it was written, from what profile and code say now."""
    kept = _manifest(plan)
    if kept is None or (kept["key"], kept["profile"]) != (key(plan), _whose(plan)):
        return False
    return all(keys.file_identity(folder(plan) / name) == digest for name, digest in kept["files"].items())


def _whose(plan: Plan) -> str:
    return f"{plan.profile.name}/{plan.backbone}"


def _manifest(plan: Plan) -> dict | None:
    """What was written with the files; None where nobody here wrote any."""
    found = read_kept(folder(plan) / MANIFEST, read_json)
    sound = isinstance(found, dict) and isinstance(found.get("files"), dict) and {"key", "profile"} <= set(found)
    return found if sound else None


def make(plan: Plan) -> None:
    """Write the files, and a manifest of their hashes beside them; what is current stays.

    ``UserError`` for a set that cannot be fetched, a task without a question, and files that somebody else put there.
    """
    target = folder(plan)
    with lock(target.with_name(f".{target.name}.lock"), remove=True):
        if not are_current(plan):
            check_ours(plan)
            _make(plan, target)


def _make(plan: Plan, target: Path) -> None:
    data, asked = plan.run / "data" / "prompts", _protocol(plan)
    write(asked, "evaluation", data, placing(plan.revisions))
    with atomic_dir(target) as part:
        for task, names in _how(plan).columns.items():
            lines = [_line(part, name, prompt) for name, prompt in _chosen(plan, data, task, asked, names)]
            if not lines:
                raise UserError(f"prompts.columns.{task}: {', '.join(names)} have no question")
            (part / Path(plan.profile.calibration.files[task]).name).write_text("".join(lines), encoding="utf-8")
        write_json(part / MANIFEST, {"key": key(plan), "profile": _whose(plan), "files": hashes(part)})


def check_ours(plan: Plan) -> None:
    """``UserError`` where a file in the folder is not as it was written here for this profile: then it is somebody's
    own."""
    target, kept = folder(plan), _manifest(plan)
    if kept is not None and kept["profile"] != _whose(plan):
        raise UserError(
            f"{target} holds the prompts of the profile {kept['profile']}: name another folder in calibration.files"
        )
    known = {MANIFEST: None, **kept["files"]} if kept is not None else {}
    for file in sorted(target.rglob("*")):
        name = str(file.relative_to(target))
        if file.is_file() and (name not in known or known[name] not in (None, sha256_file(file))):
            raise UserError(
                f"{file} is not one that emkit made here, or was changed since: move it away, or leave `prompts` out "
                "of the profile, and the files are taken as they are"
            )


def _protocol(plan: Plan) -> columns.Protocol:
    return plan.asking(dict.fromkeys(name for names in _how(plan).columns.values() for name in names))


def _chosen(
    plan: Plan, data: Path, task: str, asked: columns.Protocol, names: list[str]
) -> Iterator[tuple[str, Prompt]]:
    """A task's prompts with their columns, which take turns; of each in an order drawn by the seed, none twice."""
    how, limit = _how(plan), plan.protocol.request_seconds
    waiting = {}
    for name in names:
        room = importlib.import_module(f"{asked.columns[name].room}.asking")
        found = room.prompts(data, asked.columns[name], limit)
        waiting[name] = sorted(found, key=lambda prompt: _draw(how.seed, task, name, prompt.index), reverse=True)
    seen, count = set(), 0
    while any(waiting.values()):
        for name, left in waiting.items():
            while left and (prompt := left.pop()):
                if (prompt.text, prompt.picture) not in seen:
                    seen.add((prompt.text, prompt.picture))
                    yield name, prompt
                    count += 1
                    break
            if count == how.each:
                return


def _draw(seed: int, task: str, column: str, index: str) -> str:
    return hashlib.sha256(f"{seed}/{task}/{column}/{index}".encode()).hexdigest()


def _line(part: Path, column: str, prompt: Prompt) -> str:
    """The line of a prompt, whose picture is written beside it as it is."""
    said = {"prompt": prompt.text, "of": f"{column}/{prompt.index}"}
    if prompt.picture is not None:
        try:
            kind = str(Image.open(io.BytesIO(prompt.picture)).format).lower()
        except (UnidentifiedImageError, OSError) as error:
            raise UserError(f"{column}: the picture of item {prompt.index} cannot be read") from error
        name = f"pictures/{hashlib.sha256(prompt.picture).hexdigest()[:32]}.{kind}"
        (part / "pictures").mkdir(exist_ok=True)
        (part / name).write_bytes(prompt.picture)
        said = {"image": name, **said}
    return json.dumps(said, ensure_ascii=False) + "\n"
