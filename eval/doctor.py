"""``make doctor``: what a table needs of this machine, checked one by one, each in a line that says what to do.

Small files of models that are hub ids are fetched for it, their weights are not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import psutil
import torch

from emkit import originals
from emkit.alignment.memory import available
from emkit.disk import free_bytes
from emkit.errors import UserError
from emkit.own import hub
from emkit.own.resources import human
from eval import devices, keys, models, needs, prompts, resolved, times
from eval.judge import estimate, upstream
from eval.judge.service import KEY_VARIABLE
from eval.lm import execution
from eval.plan import Plan


@dataclass(frozen=True)
class Found:
    """One thing that was looked at: what it is, whether it is as it should be, and a line about it."""

    what: str
    well: bool
    said: str

    def line(self) -> str:
        """For people."""
        return f"{'ok' if self.well else 'MISSING':<8} {self.what:<12} {self.said}"


def examine(plan: Plan) -> Iterator[Found]:
    """Look at everything that the plan's run will need."""
    for what, look in CHECKS.items():
        try:
            said = look(plan)
        except UserError as error:
            yield Found(what, False, str(error))
        else:
            if said is not None:
                yield Found(what, True, said)


def report(plans: Sequence[Plan]) -> int:
    """Print what was found for all ``plans``, the same line once; returns the exit status (1: something is missing)."""
    seen, missing = set(), 0
    for plan in plans:
        print(f"{plan.table.title}, profile {plan.profile.name}")
        for found in examine(plan):
            line = found.line()
            print(f"  {line}" if line not in seen else f"  {line[:21].rstrip()} as above", flush=True)
            seen.add(line)
            missing += not found.well
    print("everything is there" if not missing else f"{missing} to be seen to", flush=True)
    return 1 if missing else 0


def _device(plan: Plan) -> str:
    devices.check(plan.profile.device)
    if not plan.on_gpu:
        return f"{plan.profile.device}: {os.cpu_count()} cores"
    return "; ".join(f"GPU {at}: {name}, {human(memory)}" for at, name, memory in _gpus())


def _gpus() -> list[tuple[int, str, int]]:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0  # a driver may be too old to be used
    found = [torch.cuda.get_device_properties(at) for at in range(count)]
    return [(at, each.name, each.total_memory) for at, each in enumerate(found)]


def _memory(plan: Plan) -> str | None:
    wanted = needs.needs(plan)
    if wanted is None:
        return None
    said = wanted.said
    if not plan.on_gpu:
        free = available()
        return f"{said}, of {human(free or psutil.virtual_memory().available)} available"
    found = _gpus()
    if not found:
        return said
    at, name, least = min(found, key=lambda gpu: gpu[2])
    if wanted.device > least:
        raise UserError(
            f"GPU {at} ({name}) has {human(least)}: {said}; in the profile, `fits: {{dtype: bfloat16, checkpointing: "
            "true}` and a smaller `protocol.generation.batch` take less"
        )
    return f"{said}, of {human(least)}"


def _models(plan: Plan) -> str:
    if plan.profile.zoo is not None and not models.are_there(plan):
        return f"not here: the zoo {plan.profile.zoo} will be trained"
    models.check_words(plan, resolved.small(plan.profile.checkpoints, plan.revisions))
    models.check_models(plan)
    missing = resolved.missing_bytes(plan.profile.checkpoints, plan.revisions)
    there = f"{len(plan.profile.checkpoints)} models"
    return f"{there} can be had; {human(missing)} to fetch" if missing else f"{there} are here"


def _disk(plan: Plan) -> str:
    wanted, missing = needs.needs(plan), resolved.missing_bytes(plan.profile.checkpoints, plan.revisions)
    cache, here = free_bytes(hub.cache()), free_bytes(plan.home)
    resolved.check_room(missing)
    if missing > free_bytes(originals.cache()) and _is_converted(plan):
        raise UserError(
            f"models in an original layout are converted: that takes {human(missing)} in {originals.cache()}, where "
            f"{human(free_bytes(originals.cache()))} are free: set XDG_CACHE_HOME to a folder on another disk"
        )
    if wanted is not None and wanted.merged > here:
        raise UserError(f"a merged model takes {human(wanted.merged)}, {human(here)} are free in {plan.home}")
    merged = "" if wanted is None else f"; a merged model takes {human(wanted.merged)} for each row at once"
    return f"{human(here)} free in {plan.home}, {human(cache)} in {hub.cache()}{merged}"


def _is_converted(plan: Plan) -> bool:
    """Whether a model of the plan is in a layout that is converted, by its small files."""
    folders = resolved.small(plan.profile.checkpoints, plan.revisions).values()
    return any(originals.kind(folder) is not None for folder in folders)


def _data(plan: Plan) -> str:
    published = [name for name, column in plan.protocol.columns.items() if column.published]
    if plan.data_is_current("evaluation"):
        return "evaluation items are here"
    return f"to be fetched: {', '.join(published)}" if published else "to be drawn or taken from files"


def _calibration(plan: Plan) -> str | None:
    if not any(plan.method(job.row).learned for job in plan.jobs):
        return None
    if plan.profile.prompts is not None:
        prompts.check_ours(plan)
        made = "are here" if prompts.are_current(plan) else "will be made of the columns' questions"
        return f"{prompts.folder(plan)}: prompts {made}"
    models.check_calibration(plan)
    return "every expert has prompts"


def _judge(plan: Plan) -> str | None:
    asked = [name for name, column in plan.protocol.columns.items() if column.judge]
    if not asked:
        return None
    if not upstream.is_service(plan.protocol.judge_upstream):
        return f"{', '.join(asked)}: graded by rule"
    cap, cost = estimate.cap_of(plan), estimate.total(plan)
    if upstream.mode() == "replay":
        return f"{', '.join(asked)}: from kept replies (JUDGE=replay)"
    if cap is None or estimate.spent(plan) + cost > cap:
        raise UserError(f"{', '.join(asked)} may cost ${cost:.2f}, the cap is {cap}: say --max-usd")
    if cost and not os.environ.get(KEY_VARIABLE):
        raise UserError(
            f"{', '.join(asked)} are judged by {plan.protocol.judge_model}, and there is no {KEY_VARIABLE} in the "
            "environment: without one these cells have no score; their answers are kept until there is"
        )
    return f"{', '.join(asked)}: at most ${cost:.2f} of ${cap:g}"


def _sandbox(plan: Plan) -> str | None:
    asked = [name for name, column in plan.protocol.columns.items() if getattr(column, "runs_programs", False)]
    if not asked:
        return None
    if execution.sandbox() is None:
        raise UserError(f"{', '.join(asked)} run what a model wrote, and there is no sandbox here")
    return f"{', '.join(asked)} run in it; it holds"


def _packages(plan: Plan) -> str:
    from importlib.metadata import PackageNotFoundError

    names = dict.fromkeys(name for column in plan.protocol.columns.values() for name in column.libraries)
    try:
        found = keys.versions(tuple(names))
    except PackageNotFoundError as error:
        raise UserError(f"the package {error.name} is not installed: `make setup`") from error
    return ", ".join(f"{name} {version}" for name, version in found.items())


CHECKS: dict[str, Callable[[Plan], str | None]] = {
    "packages": _packages,
    "device": _device,
    "models": _models,
    "disk": _disk,
    "memory": _memory,
    "data": _data,
    "calibration": _calibration,
    "judge": _judge,
    "sandbox": _sandbox,
    "time": times.said,
}
