"""Published sets: fetched once into the user's cache, believed by their hash, and linked into a run's data folder."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from emkit.disk import user_cache
from emkit.errors import UserError, reason
from emkit.files import atomic_write, sha256_json
from emkit.locks import lock
from eval.columns.kinds import VLMEvalKit
from eval.vlm import client

RANGE_NOT_SATISFIABLE = 416


def cache() -> Path:
    """Where fetched sets are kept, for all runs of a user."""
    return user_cache() / "sets"


def fetch(url: str, md5: str, name: str) -> Path:
    """The file behind ``url`` with the hash ``md5``, from the cache or the network; a broken download goes on.

    ``UserError`` for what cannot be reached, and for a file with another hash, which is not kept.
    """
    path = cache() / f"{md5}-{name}"
    with lock(path.with_name(f".{path.name}.lock"), remove=True):
        if path.is_file():
            if file_md5(path) != md5:  # put there by hand, or damaged since
                raise UserError(f"{path} is not the published {name} (MD5 {md5}): remove it")
            return path
        part = path.with_name(f"{path.name}.part")
        found = file_md5(part) if part.is_file() else None  # of a run that was killed before it could rename it
        if found != md5:
            _download(url, part, name)
            found = file_md5(part)
        if found != md5:
            part.unlink()
            raise UserError(
                f"{name} from {url} is not the published file: its MD5 is {found}, not {md5}; try again, or give the "
                "column another `url`"
            )
        part.rename(path)
    return path


def _download(url: str, part: Path, name: str) -> None:
    from huggingface_hub.file_download import http_get  # which tries again, goes on and follows redirects

    try:
        with open(part, "ab") as file:
            http_get(url, file, resume_size=file.tell(), displayed_filename=name)
    except Exception as error:  # whatever the connection raised
        if getattr(getattr(error, "response", None), "status_code", None) == RANGE_NOT_SATISFIABLE and part.is_file():
            part.unlink()  # it is longer than what is there: begin anew
            _download(url, part, name)
            return
        raise UserError(
            f"{name} could not be fetched from {url} ({reason(error)}): the same command goes on; a copy may "
            f"also be put at {part.with_name(part.name.removesuffix('.part'))}"
        ) from error


def file_md5(path: Path) -> str:
    """Hex MD5 of a file: what VLMEvalKit says of its sets."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def place(column: VLMEvalKit, folder: Path) -> str:
    """Put the set of a column into ``folder``, fetched where needed; returns the hash of the column's items.

    Address and MD5 are the column's own, else VLMEvalKit's (:func:`eval.vlm.client.published`). ``UserError`` where the
    set holds another number of items than the column says.
    """
    url, md5 = client.published(folder, column)
    target, kept = folder / column.file, fetch(url, md5, column.file)
    if not (target.is_file() and (target.samefile(kept) or file_md5(target) == md5)):
        _put(kept, target)
    count, of = client.count(folder, column), f" of {column.split}" if column.split else ""
    if count != column.n:
        raise UserError(f"{column.name}: {target} has {count} items{of}, and the column says n: {column.n}")
    return sha256_json([md5, column.split])


def _put(kept: Path, target: Path) -> None:
    """A link to the file, or where the disk is another a copy, in place of whatever is there."""
    with atomic_write(target) as part:
        part.unlink(missing_ok=True)
        try:
            os.link(kept, part)
        except OSError:
            shutil.copyfile(kept, part)
