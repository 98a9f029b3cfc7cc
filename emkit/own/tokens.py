"""Tokenizers and chat templates: whose the merged model gets, and whether the experts' are the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emkit import foreign
from emkit.checkpoints import TEMPLATES, copy_side_files, side_files_in
from emkit.errors import UserError

# what goes with a tokenizer rather than with the weights; the end tokens of generation are the tokenizer's
FILES = (
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model", "*.tiktoken"),
    *("chat_template*", "generation_config.json"),
)


def side_files(base: Path, owner: Path, into: Path) -> None:
    """Copy the base's configuration and the ``owner``'s tokenizer, templates and generation settings to ``into``; the
    base's own where the owner has no tokenizer."""
    wanted = taken(base, owner)
    for folder in dict.fromkeys((base, owner)):
        copy_side_files(folder, into, wanted.__contains__)


def taken(base: Path, owner: Path) -> list[Path]:
    """The files that :func:`side_files` copies."""
    if owner.resolve() == base.resolve() or not has_tokenizer(owner):
        return side_files_in(base)
    ours, theirs = side_files_in(base), side_files_in(owner)
    return [file for file in ours if not goes_with_it(file)] + [file for file in theirs if goes_with_it(file)]


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder comes with a tokenizer."""
    return any(_one_of(file, ("tokenizer.json", "tokenizer_config.json", "*.model")) for file in folder.iterdir())


def further_templates(folder: Path) -> dict[str, str]:
    """Chat templates beside the default one (for tools, for retrieval) by name, wherever transformers keeps them."""
    listed = _json(folder / "tokenizer_config.json").get("chat_template")
    entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
    found = {str(entry.get("name")): str(entry.get("template")) for entry in entries if entry.get("name") != "default"}
    for file in sorted((folder / TEMPLATES).glob("*.jinja")):
        found[file.stem] = foreign.text(file)
    return found


def _known(folder: Path) -> dict[str, int]:
    """Token → id of all that a folder's tokenizer knows, wherever it is written (six files may add tokens)."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False).get_vocab()
    except Exception:  # whatever a tokenizer that only its own code builds raises: the file has to do
        ordinary, added = vocabulary(folder)
        return ordinary | added


def check_rows(owner: str, folder: Path, rows: int | None, allowed: bool) -> list[str]:
    """A remark for a tokenizer with tokens that the embedding has no row for, where that is ``allowed``.

    ``UserError`` otherwise: such a token ends in an index out of range in whoever meets it.
    """
    beyond = sorted((i, token) for token, i in _known(folder).items() if rows is not None and i >= rows)
    if not beyond:
        return []
    i, token = beyond[0]
    what = (
        f"the tokenizer of {owner} ({folder}) has {len(beyond)} tokens more than the merged model has rows, such as "
        f"{token!r}, number {i} of {rows}"
    )
    if not allowed:
        raise UserError(
            f"{what}: a text with it could not be run; `--tokenizer` chooses another, `--allow tokenizer` takes it all "
            "the same"
        )
    return [what]


def goes_with_it(file: Path) -> bool:
    """Whether a file goes with a tokenizer rather than with the weights."""
    return _one_of(file, FILES)


def _one_of(file: Path, patterns: tuple[str, ...]) -> bool:
    return file.parent.name == TEMPLATES or any(file.match(pattern) for pattern in patterns)


def template(folder: Path) -> str | None:
    """The chat template of a folder, wherever transformers keeps it; None without one."""
    if (folder / "chat_template.jinja").is_file():
        return foreign.text(folder / "chat_template.jinja")
    for name in ("chat_template.json", "tokenizer_config.json"):
        found = _json(folder / name).get("chat_template")
        if found:
            return found if isinstance(found, str) else json.dumps(found, sort_keys=True)
    return None


def vocabulary(folder: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Token → id of ``tokenizer.json``: the ordinary ones, and those that were added; empty without that file."""
    found = _json(folder / "tokenizer.json")
    try:
        added = {entry["content"]: entry["id"] for entry in found.get("added_tokens") or []}
        words = (found.get("model") or {}).get("vocab") or {}
        if isinstance(words, list):  # a Unigram model lists pieces with their prices
            words = {piece: i for i, (piece, _) in enumerate(words)}
        words = dict(words)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"{folder / 'tokenizer.json'} cannot be read: download it again") from error
    return {token: i for token, i in words.items() if token not in added}, added


def _json(file: Path) -> dict[str, Any]:
    """A JSON file's mapping; empty if there is none. ``UserError`` for one that cannot be read."""
    if not file.is_file():
        return {}
    return foreign.mapping(file)


def compare(base: Path, experts: Mapping[str, Path], owner: str) -> list[str]:
    """Remarks on experts whose tokenizer or chat template is not that of the ``owner``.

    ``UserError`` where the base and an expert know the same id as different tokens: its weights speak another language.
    """
    folders = {"base": base, **{label: folder for label, folder in experts.items() if has_tokenizer(folder)}}
    words = {label: vocabulary(folder) for label, folder in folders.items()}
    ours = {i: token for token, i in words["base"][0].items()}
    for label in [label for label in words if label != "base" and ours]:
        theirs = {i: token for token, i in words[label][0].items()}
        differ = [i for i in ours if i in theirs and theirs[i] != ours[i]]
        if differ:
            i = min(differ)
            raise UserError(
                f"expert '{label}' does not fit the base: mismatched vocabularies, token {i} is {theirs[i]!r} there "
                f"and {ours[i]!r} in the base ({len(differ)} tokens differ)"
            )
    remarks = [] if owner in folders else [f"'{owner}' has no tokenizer of its own: the base's is taken"]
    of_owner = folders.get(owner, base)
    names = {label: words[label][1] for label in folders}
    others = [label for label in folders if names[label] != names.get(owner, names["base"])]
    if others:
        remarks.append(f"the added tokens of {_list(others)} are not those of {owner}, whose tokenizer is taken")
    others = [label for label, folder in folders.items() if template(folder) != template(of_owner)]
    if others:
        mine = "has none" if template(of_owner) is None else "is taken"
        remarks.append(
            f"the chat templates of {_list(others)} and {owner} differ, and that of {owner} {mine}; "
            "`--tokenizer` chooses"
        )
    return remarks


def _list(labels: list[str]) -> str:
    return labels[0] if len(labels) == 1 else f"{', '.join(labels[:-1])} and {labels[-1]}"
