"""The job of ``emkit merge``, once everything is checked: merge, verify, and only then give the model its name."""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from emkit import words
from emkit.alignment.options import EngineOptions
from emkit.checkpoints import Checkpoint
from emkit.disk import Planted, file_mode, unwritable
from emkit.errors import UserError
from emkit.files import sha256_file, write_json
from emkit.job import Job, save_learned
from emkit.locks import lock
from emkit.merging import Context, Merge
from emkit.own import card, differences, resources, tokens
from emkit.own.prepare import Prepared
from emkit.own.verify import verify
from emkit.shards import SHARD_BYTES
from emkit.task_vectors import TaskVectors


def run(
    prepared: Prepared,
    command: str,
    cache: Path,
    say: Callable[[str], None] = words.say,
    progress: bool = False,
    engine: EngineOptions | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> dict:
    """Merge, verify, and move the result to the recipe's ``out``; returns the report (a JSON value).

    The model is written beside ``out`` under a hidden name, checked there, and renamed, so that a model with the name
    has passed; a merge that was killed while writing or while it was checked goes on at its first unfinished shard.
    A second merge to the same ``out`` waits, and then finds it there. The report is also in it,
    as emkit_merge.json, with the card and, for learned methods, coefficients.json and history.json. ``cache`` keeps
    what a killed fit goes on from; ``engine`` says what a fit may use of the machine.
    """
    use = engine or EngineOptions()
    prepared = replace(prepared, recipe=prepared.recipe.following(use.like))
    recipe, vectors = prepared.recipe, prepared.models.vectors
    survey = _survey(vectors, say)
    first = recipe.method.inherits
    context = Context(
        task_vectors=vectors,
        options=recipe.settings(),
        scale=recipe.scale,
        seed=recipe.seed,
        device=recipe.device,
        backbone=prepared.models.backbone,
        calibration=recipe.calibration,
        first=None if first is None else recipe.method_settings(first),
        cache=cache,
        progress=progress,
        engine=use,
    )
    job = Job(recipe.method, context)
    if recipe.method.learned:
        say(f"calibration sets and fits are kept in {cache}: the same command goes on from there")
    file, wait = recipe.out.with_name(f".{recipe.out.name}.lock"), f"waiting for another merge to {recipe.out}"
    with lock(file, remove=True, waiting=lambda: say(wait)), _speaking_of(recipe.out):
        prepared.check_out()  # another merge may have written it while this one waited
        with tempfile.TemporaryDirectory() as side:
            return _write(prepared, job, survey, command, Path(side), say, shard_bytes)


def _survey(vectors: TaskVectors, say: Callable[[str], None]) -> dict[str, differences.Distance]:
    """Read every model once: its hash, whether every value is finite, and how far each expert is from the base."""
    say("reading base: hash, and whether every value is finite")
    vectors.base.scan(str(vectors.base.path))
    found = {}
    for label, expert in vectors.checkpoints.items():
        found[label] = distance = differences.Distance(vectors.base, expert, frozenset(vectors.names))
        expert.scan(str(expert.path), distance.look)
        distance.finish()
        say(f"reading {label}: ‖τ‖/‖θ‖ {distance.ratio:.3f} over the merged tensors")
        for what in distance.left_out():
            say(f"left out of {label}: {what}")
        if warning := distance.warning():
            say(f"warning: expert '{label}' {warning}")
    return found


def _write(
    prepared: Prepared,
    job: Job,
    survey: Mapping[str, differences.Distance],
    command: str,
    side: Path,
    say: Callable[[str], None],
    shard_bytes: int,
) -> dict:
    """Merge and write; the folder is checked under its hidden name, where a kill or Ctrl-C leaves it to go on from."""
    recipe, vectors = prepared.recipe, prepared.models.vectors
    base, owner = prepared.models.folders["base"], prepared.models.folders[recipe.tokenizer]
    tokens.side_files(base, owner, side)
    try:
        merge = job.run()
    except IndexError as error:  # a position or a token that the model has no row for
        text = prepared.models.described.configs["base"].text
        places = text.get("max_position_embeddings", text.get("n_positions"))
        raise UserError(
            f"a calibration sequence does not fit a model ({error}); it has {places} positions: give shorter prompts, "
            "or lower calibration.max_new_tokens"
        ) from error
    report = _report(prepared, job.context, merge, survey, command)
    like = vectors.base.with_side_files(side)

    def finish(part: Path) -> None:
        if merge.learned is not None:
            save_learned(merge.learned, part)
        say("checking it")
        report["checked"] = verify(part, like, vectors.names, prepared.models.backbone, recipe.device)
        report["model_sha256"] = Checkpoint.open(part).sha256()
        write_json(part / resources.REPORT, report)
        for file in filter(Path.is_file, part.rglob("*")):
            file.chmod(file_mode())

    say(f"writing {recipe.out}")
    readme = card.text(report, recipe.method, recipe.sources())
    job.write(merge, recipe.out, readme, like, shard_bytes, finish, prepared.check_out)
    return report


@contextlib.contextmanager
def _speaking_of(out: Path) -> Iterator[None]:
    """Errors speak of ``out``, the name a person knows, not of the hidden folder beside it."""
    try:
        yield
    except OSError as error:
        raise unwritable(out, error) from error
    except Planted:  # which a person has to look at
        raise
    except UserError as error:
        hidden = rf"({re.escape(str(out.parent))}/)?{re.escape(f'.{out.name}.part')}[^\s:)]*"
        raise UserError(re.sub(hidden, lambda _: str(out), str(error))) from error


def _report(
    prepared: Prepared,
    context: Context,
    merge: Merge,
    survey: Mapping[str, differences.Distance],
    command: str,
) -> dict[str, Any]:
    """What the merged model was made from and how, as a JSON value."""
    recipe, vectors = prepared.recipe, prepared.models.vectors
    everyone = {"base": vectors.base, **vectors.checkpoints}
    names = prepared.models.described.names
    files = recipe.calibration.files
    return {
        "method": recipe.method.name,
        "backbone": recipe.backbone,
        "seed": recipe.seed,
        "recipe": dict(recipe.given),
        "options": context.options.model_dump(),
        **({"fit": context.engine.recorded} if recipe.method.learned else {}),
        "command": command,
        "inputs": {
            label: {"name": names[label], "folder": str(prepared.models.folders[label]), "sha256": checkpoint.sha256()}
            for label, checkpoint in everyone.items()
        },
        "distances": {label: distance.ratio for label, distance in survey.items()},
        "warnings": [
            *prepared.remarks,
            *(f"expert '{label}' {words}" for label, found in survey.items() if (words := found.warning())),
        ],
        "left_out": {
            label: found
            for label in survey
            if (found := [*prepared.left_out.get(label, []), *survey[label].left_out()])
        },
        "missing_code": list(prepared.missing_code),
        "tokenizer": recipe.tokenizer,
        "tensors": len(vectors.base.names),
        "merged_tensors": len(vectors.names),
        "coefficients": card.coefficients(merge),
        "calibration": {
            name: {**entry, "sha256": sha256_file(files[name])} for name, entry in merge.calibration.items()
        },
        "versions": card.versions(),
    }
