"""Models by folder or hub id: safetensors and what comes with them are fetched, never code and never pickles.

A model in a layout that only its own code opens is given as the folder it is converted to (:mod:`emkit.originals`).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from emkit import foreign, originals
from emkit.checkpoints import SIDE_FILES, TEMPLATES
from emkit.errors import UserError

SMALL = (*SIDE_FILES, f"{TEMPLATES}/*.jinja", "*.safetensors.index.json")
WEIGHTS = ("*.safetensors",)
# the same weights in another layout, and what lies in folders, but for that of further chat templates
SECOND_COPIES = ("consolidated*", "[!a]*/*", "a[!d]*/*", "ad[!d]*/*")
_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")  # user/model, and a revision where one is wanted


def is_id(name: str) -> bool:
    """Whether ``name`` is read as a hub id: it looks like one, and no folder of that name is here."""
    return _ID.fullmatch(name) is not None and not Path(name).exists() and name.split("/")[0] not in (".", "..")


def folder(name: str, label: str, patterns: tuple[str, ...]) -> Path:
    """The local folder of a model whose files of ``patterns`` are there: ``name`` itself, the hub's download, or what
    either is converted to.

    A hub id may end in ``@revision``. What was downloaded before is not downloaded again, and serves without a network.
    ``UserError`` if there is neither such a folder nor such a model.
    """
    return originals.readable(stored(name, label, patterns), weights=any(pattern in patterns for pattern in WEIGHTS))


def stored(name: str, label: str, patterns: tuple[str, ...] = (*SMALL, *WEIGHTS)) -> Path:
    """The same as :func:`folder`, but in whatever layout the model is stored."""
    if not is_id(name):
        path = Path(name).expanduser()
        if not path.is_dir():
            raise UserError(f"{label}: there is no folder {name}, and it is no hub id (user/model): check the path")
    else:
        path = Path(_download(name, label, patterns))
    foreign.check_folder(path, SMALL)
    return path


def dataset(name: str, label: str, patterns: tuple[str, ...]) -> Path:
    """The hub's download of those files of a data set, whose name may end in ``@revision``; ``UserError`` for none."""
    return Path(_download(name, label, patterns, kind="dataset"))


def kept(name: str, revision: str) -> Path | None:
    """The cached folder of a hub id at a revision, without a network; None where it is not there."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    repository = name.partition("@")[0]
    place = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")
    found = place / "snapshots" / revision
    return found if found.is_dir() else None


def files(name: str, label: str, patterns: tuple[str, ...]) -> list[Any]:
    """The files of a hub id (``filename``, ``file_size`` in bytes, ``commit_hash``, ``will_download``)."""
    return _download(name, label, patterns, dry_run=True)


def missing(name: str, label: str) -> list[Any]:
    """The files of weights of a hub id that :func:`folder` would have to download; none for a folder."""
    if not is_id(name):
        return []
    try:
        return [file for file in files(name, label, WEIGHTS) if file.will_download]
    except UserError:  # without a network, what is there has to do
        return []


def missing_bytes(name: str, label: str) -> int:
    """How much :func:`folder` would have to download for the weights of ``name``; 0 for a folder."""
    return sum(file.file_size or 0 for file in missing(name, label))


def cache() -> Path:
    """Where downloads are kept."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _download(name: str, label: str, patterns: tuple[str, ...], dry_run: bool = False, kind: str = "model"):
    from huggingface_hub import errors, snapshot_download

    repository, _, revision = name.partition("@")
    chosen = {"allow_patterns": list(patterns), "ignore_patterns": list(SECOND_COPIES) if kind == "model" else None}
    try:
        return snapshot_download(repository, repo_type=kind, revision=revision or None, dry_run=dry_run, **chosen)
    except errors.GatedRepoError as error:
        raise UserError(
            f"{label}: {name} asks for its terms to be accepted on its hub page, and `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        here = f"there is no folder {name} here, and " if kind == "model" else f"{name}: "
        raise UserError(f"{label}: {here}the hub has no public {kind} of that name: check the spelling") from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{label}: {repository} has no revision '{revision}' on the hub") from error
    except Exception as error:  # whatever the connection raised: the library changes its own from version to version
        reason = " ".join(str(error).split(". ")[0].split()) or type(error).__name__
        here = f"there is no folder {name} here, and " if kind == "model" else f"{name}: "
        raise UserError(
            f"{label}: {here}the hub cannot be reached to look for a {kind} of that name ({reason}): check the "
            f"{'path or the ' if kind == 'model' else ''}connection"
        ) from error
