"""Train a whole zoo from its recipe: base, experts, Mixture Training where it has one (``emkit zoo build``).

Stages are resumable: a finished model is a complete folder, an unfinished one a training state under the work
folder. The base is trained by two processes that share each batch; experts and mixture train two at a time. Every
process has one thread: two threads that wait for each other lose far more when anything else runs. What a model is,
and what it learns from, is its family's affair (:mod:`emkit.zoo.families`).
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing.connection
import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import distributed
from tqdm import tqdm

from emkit import backbones, files
from emkit.errors import UserError
from emkit.zoo import card, families, pretrained
from emkit.zoo.train import WHOLE, Share

RECIPES = Path(__file__).resolve().parent.parent / "recipes" / "zoo"


def load_recipe(name: str) -> dict:
    """The zoo recipe called ``name`` (``internvl-mini``, ``internvl-smoke``), or that with other seeds
    (``internvl-mini-seed1``): those of weights and batches 1 higher, those of the data 1,000."""
    given = re.fullmatch(r"(.+)-seed([1-9][0-9]?)", name)
    path, further = RECIPES / f"{given[1] if given else name}.yaml", int(given[2]) if given else 0
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
        raise UserError(f"no zoo recipe '{name}': choose one of {known}; '-seed1' behind it gives it other seeds")
    recipe = yaml.safe_load(path.read_text())
    if further:
        recipe |= {"seed": recipe["seed"] + further, "data_seed": recipe["data_seed"] + 1000 * further}
    return recipe | {"name": name}


def domains(recipe: dict) -> dict[str, str]:
    """The experts' folder names, each with its name in the recipe."""
    return {domain.lower(): domain for domain in families.of(recipe).DOMAINS}


def members(recipe: dict) -> list[str]:
    """Folder names of a zoo's models, the base first."""
    return ["base", *domains(recipe), *(["mixture"] if "mixture" in recipe else [])]


def stage(recipe: dict, member: str) -> dict:
    """Everything that the training of one member depends on (of the zoo recipe: its own section)."""
    if member == "base":
        return recipe["base"]
    if member == "mixture":
        drawn = {name: stage(recipe, name)["examples"] for name in domains(recipe)}
        return recipe["mixture"] | {"union_of": drawn}
    return recipe["experts"]["all"] | recipe["experts"].get(domains(recipe)[member], {})


def own_subtasks(recipe: dict, member: str) -> tuple[str, ...]:
    """The sub-tasks that a member is meant to lead: an expert's; none of the base and of Mixture Training."""
    family = families.of(recipe)
    return family.DOMAINS[domains(recipe)[member]] if member in domains(recipe) else ()


def shares_of(recipe: dict, member: str) -> dict[str, float]:
    """The sub-tasks that a member is trained on, in the order of their names, each with how often it is drawn.

    An expert has its own, and of all the others the share ``also`` if its recipe gives one; others have them all.
    """
    settings, own = stage(recipe, member), own_subtasks(recipe, member)
    shares = dict.fromkeys(own or families.of(recipe).SUBTASKS, 1.0)
    if own and "also" in settings:
        shares |= {name: settings["also"] for name in families.of(recipe).SUBTASKS if name not in own}
    return {name: settings.get("shares", {}).get(name, share) for name, share in sorted(shares.items())}


def build(recipe: dict, out: Path, work: Path, jobs: int = 2) -> None:
    """Train every member that has no finished folder under ``out``; training states live under ``work``.

    Run it again after a kill and it goes on at the last saved step. Raises ``UserError`` when ``out`` holds members
    of another recipe, since a zoo's models belong together.
    """
    names = members(recipe)
    finished = [name for name in names if card.is_finished(out / name)]
    for name in finished:
        if card.read(out / name)["recipe_sha256"] != card.recipe_hash(recipe, stage(recipe, name)):
            raise UserError(f"{out / name} was trained by another recipe: remove it or choose another folder")
    work = work / card.recipe_hash(recipe, recipe)[:12]
    work.mkdir(parents=True, exist_ok=True)
    if "base" not in finished:
        (bring_base if "package" in recipe["base"] else train_base)(recipe, out, work)
    waiting = [name for name in names[1:] if name not in finished]
    waiting.sort(key=lambda name: -stage(recipe, name)["steps"])
    if jobs == 1:
        for name in waiting:
            train_from_base(recipe, name, out, work, 0)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker) as pool:
        futures = [pool.submit(train_from_base, recipe, name, out, work, line) for line, name in enumerate(waiting)]
        for future in as_completed(futures):
            future.result()


def bring_base(recipe: dict, out: Path, work: Path) -> None:
    """Take a base that a package ships (:mod:`emkit.zoo.pretrained`). Its card is committed though its weights are not:
    where these have the hash there, it is not asked again what it can do."""
    torch.set_num_threads(1)
    known = card.read(out / "base") if (out / "base" / card.FILE).is_file() else None
    model, tokenizer = pretrained.opened(recipe["base"])
    _write(recipe, "base", model, tokenizer, [], out, known)


def train_base(recipe: dict, out: Path, work: Path) -> None:
    """Train the base from nothing, in ``recipe['workers']`` processes of one thread that share each batch."""
    world, family = recipe["workers"], _from_nothing(recipe)
    drawn = _draw(recipe, "base", recipe["base"], 0)
    data = family.base_set(recipe, family.processor(recipe), drawn)
    prepared = family.prepare(recipe, drawn, work)
    if world == 1:
        _base_worker(0, 1, recipe, data, prepared, out, work)
        return
    (work / "rendezvous").unlink(missing_ok=True)
    torch.multiprocessing.spawn(_base_worker, (world, recipe, data, prepared, out, work), nprocs=world)


def _from_nothing(recipe: dict) -> families.FromNothing:
    """The recipe's family, of which the base is trained here."""
    family = families.of(recipe)
    assert isinstance(family, families.FromNothing), "its base is of a package"
    return family


def _start_worker() -> None:
    """One thread; and end with the process that started this one, however that ends.

    An orphan would go on training and write its states over those of the run that was started anew.
    """
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    ends = parent.sentinel

    def watch() -> None:
        multiprocessing.connection.wait([ends])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _base_worker(rank: int, world: int, recipe: dict, data, prepared, out: Path, work: Path) -> None:
    """One of the base's processes: first what the family trains before it (``prepared``), then the whole model."""
    torch.set_num_threads(1)
    if world > 1:
        _start_worker()
        distributed.init_process_group("gloo", f"file://{(work / 'rendezvous').resolve()}", rank=rank, world_size=world)
    family = _from_nothing(recipe)
    processor = family.processor(recipe)
    seed = recipe["seed"] * 1000
    share = Share(rank, world)
    model = family.create(recipe, processor, seed)
    family.pretrain(recipe, model, prepared, seed, work, _bar, share)
    _train(recipe, "base", model, processor, data, seed, out, work, 0, share)
    if world > 1:
        distributed.destroy_process_group()


def train_from_base(recipe: dict, member: str, out: Path, work: Path, line: int) -> None:
    """Fine-tune an expert, or Mixture Training, from the finished base."""
    family = families.of(recipe)
    model, processor = backbones.get(recipe["backbone"]).load(out / "base")
    data = family.expert_set(recipe, processor, _draw(recipe, member, stage(recipe, member), line), model)
    seed = recipe["seed"] * 1000 + members(recipe).index(member)
    _train(recipe, member, model, processor, data, seed, out, work, line)


def _draw(recipe: dict, member: str, settings: dict, line: int) -> list:
    """Draw the member's training examples, sub-task by sub-task; Mixture Training's are those of all experts.

    ``examples`` a sub-task; ``also_examples``, if the recipe gives them, of those that are not an expert's own.
    """
    if member == "mixture":
        sets = [(name, subtask) for name in domains(recipe) for subtask in sorted(own_subtasks(recipe, name))]
    else:
        sets = [(member, subtask) for subtask in shares_of(recipe, member)]
    family, drawn = families.of(recipe), []
    for name, subtask in tqdm(sets, desc=f"draw {member}", position=line, unit="set"):
        given, own = settings if name == member else stage(recipe, name), own_subtasks(recipe, name)
        n = given.get("also_examples", given["examples"]) if own and subtask not in own else given["examples"]
        drawn += family.draw(recipe, subtask, n, recipe["data_seed"] + members(recipe).index(name))
    return drawn


def _train(recipe, member, model, processor, data, seed, out, work, line, share=WHOLE) -> None:
    """Run the training loop under a progress bar; rank 0 writes the member's folder."""
    settings = stage(recipe, member)
    state = work / f"{member}.pt"
    shares = np.array(list(shares_of(recipe, member).values()))
    family = families.of(recipe)
    with _bar(f"train {member}", settings["steps"], share, line) as progress:
        log = family.train(model, processor, data, settings, seed, state, shares, progress, share)
    if share.rank == 0:
        _write(recipe, member, model, processor, log, out)
        state.unlink(missing_ok=True)


@contextlib.contextmanager
def _bar(title: str, steps: int, share: Share, line: int = 0) -> Iterator[Callable[[int, float], None]]:
    """A progress bar of training steps, drawn by rank 0; yields the function that moves it."""
    with tqdm(total=steps, desc=title, position=line, unit="step", mininterval=2, disable=share.rank > 0) as bar:

        def progress(step: int, loss: float) -> None:
            bar.update(step - bar.n)
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)

        yield progress


def _write(recipe: dict, member: str, model, processor, log: list[dict], out: Path, known: dict | None = None) -> None:
    """The finished folder: bf16 safetensors with everything that loading them needs, log and card (``known``: one of
    these very weights, if they are)."""
    for parameter in model.parameters():  # not the buffers: rotary frequencies are computed anew on loading, in fp32
        parameter.data = parameter.data.to(torch.bfloat16)
    with files.atomic_dir(out / member) as folder:
        family = families.of(recipe)
        family.save(recipe, model, processor, folder)
        if log:
            (folder / "log.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in log))
        if known is not None and card.is_of(known, folder, card.recipe_hash(recipe, stage(recipe, member))):
            card.put(folder, known, recipe)
            return
        measured = family.skills(recipe, model.float(), processor)
        card.write(folder, recipe, member, stage(recipe, member), measured)
