"""What others wrote: the small files of a model's folder, and recipes, read through one door.

A file that is read is a regular one, of a size that such a file can have. What is copied into a merged model lies in
its author's folder, or among the blobs of the hub's cache: a link may be read, but not carried on. Anything else is one
line (``UserError``) that names the file.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from emkit.errors import UserError, reason

MiB = 2**20
LARGEST = 256 * MiB  # a tokenizer of 256,000 tokens takes 35
TEXT = 4 * MiB  # a recipe, a profile, a chat template
_READ = re.compile(
    r"(?:config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|adapter_config|chat_template"
    r"|(?:video_pre|pre)?processor_config|model\.safetensors\.index)\.json"
)
DEPTH = 64  # of mappings and lists in each other; published configurations have 5


def content(path: Path, limit: int = LARGEST, named: bool = False) -> bytes:
    """The bytes of a regular file; ``UserError`` for anything else (a pipe, a device), for one that is larger than
    ``limit`` bytes, and for one that cannot be read. One that a person ``named`` may be a pipe, such as /dev/stdin."""
    try:
        with open(path, "rb", opener=None if named else _without_waiting) as file:
            if not named:
                _check_regular(path, os.fstat(file.fileno()).st_mode)
            found = file.read(limit + 1)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    _check_size(path, len(found), limit)
    return found


def text(path: Path, limit: int = TEXT, named: bool = False) -> str:
    """The UTF-8 text of a file (:func:`content`)."""
    try:
        return content(path, limit, named).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"cannot read {path}: it is not text (UTF-8)") from error


def mapping(path: Path, limit: int = LARGEST) -> dict[str, Any]:
    """The mapping that a JSON file holds; ``UserError`` for what is no JSON, another kind of value, or nested deeper
    than anything that was published."""
    try:
        found = json.loads(text(path, limit))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({reason(error)}): download it again") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} holds {_called(found)} where a mapping belongs: download it again")
    check_depth(found, str(path))
    return found


def check_depth(value: Any, where: str) -> None:
    """``UserError`` where mappings and lists stand in each other deeper than ``DEPTH``."""
    level, depth = [value], 0
    while level := [inner for outer in level for inner in _inside(outer) if isinstance(inner, dict | list)]:
        depth += 1
        if depth > DEPTH:
            raise UserError(f"{where} is nested deeper than {DEPTH} levels, which no such file is: is it damaged?")


def check_folder(folder: Path, wanted: tuple[str, ...]) -> None:
    """Look at a model's folder before anything reads its small files, those that match ``wanted`` patterns.

    ``UserError`` for a pipe or a device, for a small file that is too large or leads nowhere, and for JSON of another
    kind in a file that is read.
    """
    small = {file for pattern in wanted for file in folder.glob(pattern)}
    for file in sorted(folder.iterdir()):
        if _leads_somewhere(file):
            if not file.is_dir():
                _check_regular(file, file.stat().st_mode)
        elif file in small:  # weights that are gone from a cache are fetched again
            raise UserError(f"{file} is a link that leads nowhere: download it again")
    for file in sorted(small):
        if not file.is_dir():
            _check_size(file, file.stat().st_size, LARGEST)
        if file.is_file() and _READ.fullmatch(file.name):
            mapping(file)


def check_inside(file: Path, folder: Path) -> None:
    """``UserError`` for a file, of a model's ``folder``, that would be copied and is a link out of it. Blobs of a hub
    cache, to which its snapshots and older downloads link, count as inside."""
    if not _leads_somewhere(file):
        raise UserError(f"{file} is a link that leads nowhere: download it again")
    found = file.resolve()
    blob = found.parent.name == "blobs" and found.parent.parent.name.startswith("models--")
    if not blob and not found.is_relative_to(folder.resolve()):
        raise UserError(f"{file} leads out of the model's folder, to {found}: put the file itself there")


def _leads_somewhere(file: Path) -> bool:
    try:
        return file.resolve().exists()
    except (OSError, RuntimeError):  # a link to itself
        return False


def _inside(value: Any) -> Iterator[Any]:
    return iter(value.values() if isinstance(value, dict) else value if isinstance(value, list) else ())


def _without_waiting(path: str, flags: int) -> int:
    """To open a pipe would last until somebody writes into it."""
    return os.open(path, flags | os.O_NONBLOCK)


def _check_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        what = "a pipe" if stat.S_ISFIFO(mode) else "a device" if not stat.S_ISSOCK(mode) else "a socket"
        raise UserError(f"{path} is no regular file but {what}: put the file there")


def _check_size(path: Path, size: int, limit: int) -> None:
    if size > limit:
        raise UserError(f"{path} is larger than {limit // MiB} MiB, which no such file is: is it another one?")


def _called(value: Any) -> str:
    kinds = {list: "a list", str: "text", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
