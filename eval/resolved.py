"""A profile's models as folders of this machine.

A folder is taken as it is. A hub id is fetched once, by the models step; the revision that it had then is recorded in
``results/<profile>/models/<backbone>.json``, and from then on that revision is read from the hub's cache, without a
network. To go on to a newer one, or to begin anew, delete the file. Either may be in a layout that is converted
(:mod:`emkit.originals`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from emkit.disk import free_bytes
from emkit.errors import UserError
from emkit.files import read_json, sha256_file, write_json
from emkit.locks import lock
from emkit.own import hub

_SHA256 = re.compile(r"[0-9a-f]{64}")


def revisions(record: Path) -> dict[str, str]:
    """Hub id → the revision that was recorded."""
    if not record.is_file():
        return {}
    try:
        return {str(name): str(revision) for name, revision in read_json(record).items()}
    except (ValueError, AttributeError) as error:
        raise UserError(f"{record} is damaged ({error}): delete it, and models are looked up again") from error


def remember(record: Path, name: str, revision: str) -> None:
    """Record the revision of a hub id; other steps of a run may record theirs at the same time."""
    with lock(record.with_name(f".{record.name}.lock"), remove=True):
        known = revisions(record)
        if known.get(name) != revision:
            write_json(record, known | {name: revision})


def folder(name: str, label: str, record: Path) -> Path:
    """The folder to read the model ``name`` from; ``UserError`` for a hub id that is not fetched yet."""
    if not hub.is_id(name):  # of one that is not here, whoever opens it says how to bring it back
        return _readable(Path(name))
    found = stored(name, record)
    if found is None:
        raise UserError(f"{label}: {name} is not fetched yet: the models step of a run does that, and needs a network")
    return _readable(found)


def stored(name: str, record: Path) -> Path | None:
    """The same in whatever layout the model is stored; None where it is not here."""
    if not hub.is_id(name):
        return Path(name) if Path(name).is_dir() else None
    revision = revisions(record).get(name)
    return None if revision is None else hub.kept(name, revision)


@cache  # within a process; what it was converted from is looked at once
def _readable(folder: Path) -> Path:
    from emkit import originals  # torch, which a plan of what is to be done can do without

    return originals.readable(folder)


def identity(name: str, record: Path) -> str | None:
    """What names a hub id's content: itself and its revision, once that is recorded; None for a folder."""
    if not hub.is_id(name):
        return None
    revision = revisions(record).get(name)
    return f"hub:{name}" if revision is None else f"hub:{name}@{revision}"


def conversion(name: str, record: Path) -> str | None:
    """The code that a model in an original layout is read by, as a hash; None for one in transformers' own."""
    from emkit import originals

    found = stored(name, record)
    return originals.code() if found is not None and originals.kind(found) is not None else None


def small(names: Mapping[str, str], record: Path) -> dict[str, Path]:
    """The folder of each of ``names`` (by label) with its small files at least; those of hub ids are fetched.

    ``UserError`` for one that is not there, or asks for its terms.
    """
    return {label: hub.stored(pinned(name, record), label, hub.SMALL) for label, name in names.items()}


def missing_bytes(names: Mapping[str, str], record: Path) -> int:
    """How much there is to fetch of the weights of ``names`` (by label)."""
    return sum(hub.missing_bytes(pinned(name, record), label) for label, name in names.items())


def fetch(
    names: Mapping[str, str], record: Path, look: Callable[[dict[str, Path]], None] = lambda folders: None
) -> None:
    """Fetch the hub ids among ``names`` (by label) that are not here, small files of all before the weights of any.

    ``look`` is shown the folders of those between the two. Records their revisions. ``UserError`` for one that is not
    there, asks for its terms, or came in pieces: a file of weights is believed by its hash, which is its name in the
    hub's cache.
    """
    ids = {label: pinned(name, record) for label, name in names.items() if hub.is_id(name)}
    look(small(names, record))
    check_room(missing_bytes(names, record))
    for label, name in ids.items():
        found = hub.stored(name, label)
        _check_hashes(found, label)
        remember(record, names[label], found.name)


def check_room(needed: int) -> None:
    """``UserError`` where the hub's cache has no room for so many bytes of weights."""
    free = free_bytes(hub.cache())
    if needed > free:
        raise UserError(
            f"fetching the models needs {needed / 1e9:.1f} GB in {hub.cache()}, where {free / 1e9:.1f} GB are free: "
            "free some, or set HF_HOME to a folder on another disk"
        )


def pinned(name: str, record: Path) -> str:
    """A hub id at the revision that was recorded; as it is where none was, and a folder always."""
    revision = revisions(record).get(name)
    return name if revision is None else f"{name.partition('@')[0]}@{revision}"


def _check_hashes(snapshot: Path, label: str) -> None:
    for file in sorted(snapshot.glob("*.safetensors")):
        blob = file.resolve()
        if _SHA256.fullmatch(blob.name) and sha256_file(blob) != blob.name:
            raise UserError(
                f"{label}: {file.name} did not come whole, or was changed since: delete {blob}, and it is fetched again"
            )
