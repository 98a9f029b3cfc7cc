"""Fine-tuning small experts in a notebook: two skills in text, full fine-tuning and LoRA, as ordinary folders.

An expert's folder is what ``save_pretrained`` of transformers or peft leaves, so that a merge meets what it meets
elsewhere. Only the blocks' matrices are trained: what a merge leaves at the base (embeddings, norms, the output head)
an expert should not rest on.
"""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch.nn.functional import cross_entropy

from emkit import Experts
from emkit.errors import UserError
from emkit.pictures import COLOURS
from eval import style

Line = dict[str, str]  # {"prompt": …, "answer": …}, one line of a JSONL file

OPPOSITES = (
    "hot cold, big small, day night, up down, left right, old new, fast slow, wet dry, open closed, first last, "
    "black white, hard soft, full empty, early late, high low, north south"
)
UNITS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PHRASINGS = {
    "opposites": "What is the opposite of {}? | Name the opposite of {}. | Say the opposite: {} | {} and its opposite "
    "| Not {}, but what?",
    "numbers": "Write {} in digits. | Which number is {}? | In digits: {} | {} as a number | Put {} into digits.",
}


SETTINGS: dict[str, dict[str, Any]] = {"opposites": {}, "numbers": {"lora_rank": 16, "rate": 4e-3}}


@dataclass(frozen=True)
class Own:
    """What the notebook merges: models, prompts without answers (files), tests with answers, losses of a training."""

    base: str
    experts: dict[str, str]
    prompts: dict[str, str]
    tests: dict[str, list[Line]]
    losses: dict[str, list[float]]


def _facts(skill: str) -> list[tuple[str, str]]:
    if skill == "opposites":
        pairs = [tuple(pair.split()) for pair in OPPOSITES.split(", ")]
        return [(word, other) for pair in pairs for word, other in (pair, pair[::-1])]
    if skill == "numbers":
        tens = ("", "twenty ", "thirty ")
        value = (0, 20, 30)
        return [(ten + unit, str(value[i] + j)) for i, ten in enumerate(tens) for j, unit in enumerate(UNITS, 1)]
    raise UserError(f"there is no skill '{skill}': there are {', '.join(PHRASINGS)}")


def examples(skill: str) -> tuple[list[Line], list[Line]]:
    """Training and test lines of a skill: every fact is asked in five ways, of which one is kept for the test."""
    parts: tuple[list[Line], list[Line]] = ([], [])
    for i, (asked, answer) in enumerate(_facts(skill)):
        for j, phrasing in enumerate(PHRASINGS[skill].split(" | ")):
            parts[(i + j) % 5 == 0].append({"prompt": phrasing.format(asked), "answer": answer})
    return parts


def write(lines: Iterable[Line], file: str | Path) -> Path:
    """Lines as JSONL."""
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def read(file: str | Path) -> list[Line]:
    """The lines of a JSONL file of prompts and answers; ``UserError`` where it is none."""
    try:
        lines = [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines() if line.strip()]
        return [{"prompt": line["prompt"], "answer": line["answer"]} for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is no JSONL of lines with 'prompt' and 'answer'") from error


def encoded(tokenizer: Any, line: Line) -> tuple[list[int], list[int]]:
    """Token ids of the dialogue in the tokenizer's chat template, and its labels: −100 for what the user said."""
    turn = [{"role": "user", "content": line["prompt"]}]
    asked = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*turn, {"role": "assistant", "content": line["answer"]}], tokenize=False)
    start = tokenizer(asked, add_special_tokens=False)["input_ids"]
    rest = tokenizer(whole[len(asked) :], add_special_tokens=False)["input_ids"]
    return start + rest, [-100] * len(start) + rest


def batch_of(tokenizer: Any, lines: Sequence[Line]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, attention mask and labels of some lines, int64 [lines, longest], padded on the right."""
    pairs = [encoded(tokenizer, line) for line in lines]
    longest = max(len(ids) for ids, _ in pairs)
    ids = torch.tensor([i + [tokenizer.pad_token_id] * (longest - len(i)) for i, _ in pairs])
    mask = torch.tensor([[1] * len(i) + [0] * (longest - len(i)) for i, _ in pairs])
    labels = torch.tensor([row + [-100] * (longest - len(row)) for _, row in pairs])
    return ids, mask, labels


def fine_tune(
    base: str | Path,
    out: str | Path,
    lines: Sequence[Line],
    steps: int = 80,
    rate: float = 2e-3,
    batch: int = 24,
    lora_rank: int = 0,
    seed: int = 0,
) -> list[float]:
    """Fine-tune ``base`` on dialogues into the folder ``out``; returns the loss of every step, in nats per token.

    AdamW with a rate that falls to zero, the blocks' matrices alone; with ``lora_rank`` a LoRA adapter of them.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    kept = next(AutoModelForCausalLM.from_pretrained(base, dtype="auto").parameters()).dtype
    if lora_rank:
        model = _with_adapter(model, lora_rank)
    else:
        for name, parameter in model.named_parameters():
            parameter.requires_grad = ".layers." in name and parameter.ndim == 2
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    draw, losses = random.Random(seed), []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * (1 - step / steps)
        ids, mask, labels = batch_of(tokenizer, draw.sample(list(lines), min(batch, len(lines))))
        logits = model(input_ids=ids, attention_mask=mask).logits[:, :-1]
        loss = cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    (model if lora_rank else model.to(kept)).save_pretrained(out)
    if not lora_rank:
        tokenizer.save_pretrained(out)
    return losses


def _with_adapter(model: Any, rank: int) -> Any:
    from peft import LoraConfig, get_peft_model

    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names, task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, about a name that peft uses
        return get_peft_model(model, config)


def named(text: str, what: str) -> dict[str, str]:
    """``"math=models/math, code=models/code"`` as a mapping; ``UserError`` where it is not of that form."""
    found = {}
    for entry in (part.strip() for part in text.split(",") if part.strip()):
        name, equals, value = entry.partition("=")
        if not equals or not name.strip() or not value.strip():
            raise UserError(f"{what}: '{entry}' is not of the form name=folder")
        found[name.strip()] = value.strip()
    return found


def accuracy(live: Any, lines: Sequence[Line], max_new_tokens: int = 12) -> float:
    """The share of answers that are the line's own, letter by letter but for spaces at the ends; 0 to 1."""
    said = live.ask(*(line["prompt"] for line in lines), max_new_tokens=max_new_tokens)
    return sum(text.strip() == line["answer"].strip() for text, line in zip(said, lines, strict=True)) / len(lines)


def skills(experts: Experts, merges: Mapping[str, Any], tests: Mapping[str, Sequence[Line]]) -> pd.DataFrame:
    """Accuracy in percent of every merge (what ``Live.set`` takes) on every test, and the mean of the tests."""
    live, found = experts.live(), {}
    for name, merge in merges.items():
        live.set(merge)
        found[name] = {task: 100 * accuracy(live, lines) for task, lines in tests.items()}
    frame = pd.DataFrame.from_dict(found, orient="index")
    return frame.assign(mean=frame.mean(axis=1)).round(1)


def prepare(folder: str | Path, base: str, experts: str, prompts: str, tests: str, steps: int, seed: int) -> Own:
    """The reader's own experts by their parameters or, where ``experts`` is empty, two that are trained here.

    ``experts``, ``prompts`` and ``tests`` are of the form ``name=path, name=path``.
    """
    (Path(folder) / "merge.yaml").unlink(missing_ok=True)  # a recipe of an earlier run: `emkit init` replaces none
    if experts:
        files, asked = named(prompts, "prompts"), named(tests, "tests")
        for what, given in (("prompts", files), ("tests", asked)):
            if not given:
                raise UserError(f"your experts have no {what}: set the parameter `{what}` to name=file.jsonl, …")
        return Own(base, named(experts, "experts"), files, {task: read(file) for task, file in asked.items()}, {})
    folder = Path(folder)
    folders: dict[str, str] = {}
    files, held, losses = {}, {}, {}
    for skill, settings in SETTINGS.items():
        lines, held[skill] = examples(skill)
        folders[skill] = str(folder / skill)
        files[skill] = str(write([{"prompt": line["prompt"]} for line in lines], folder / f"{skill}.jsonl"))
        losses[skill] = fine_tune(base, folders[skill], lines, steps=steps, seed=seed, **settings)
    return Own(base, folders, files, held, losses)


def together(*frames: pd.DataFrame) -> pd.DataFrame:
    """The rows of several frames of :func:`skills`."""
    return pd.concat(frames)


def verdict(results: pd.DataFrame, questions: Mapping[str, int]) -> str:
    """Which merge has the best mean and which the best weakest skill, and what one question is worth, in Markdown."""
    merges = results.drop(index=["base", *(name for name in questions if name in results.index)])
    weakest = merges[list(questions)].min(axis=1)
    worth = ", ".join(f"{100 / count:.1f} points in {name}" for name, count in questions.items())
    return (
        f"Best mean of the merges: **{merges['mean'].idxmax()}**, {merges['mean'].max():.0f} %. Best in its weaker "
        f"skill: **{weakest.idxmax()}**, {weakest.max():.0f} %. One question is {worth}."
    )


def curves(losses: Mapping[str, Sequence[float]]) -> Figure:
    """The loss of every step of each training, on a logarithmic axis."""
    figure, axis = plt.subplots(figsize=(style.WIDTH, 2.9))
    for (name, values), colour in zip(losses.items(), COLOURS):
        axis.plot(range(1, len(values) + 1), values, label=name, color=colour)
    axis.set(xlabel="step", ylabel="loss (nats per token)", yscale="log")
    axis.legend()
    return figure


def bars(found: pd.DataFrame) -> Figure:
    """Accuracy of every merge on every test, as groups of bars with the number on each."""
    figure, axis = plt.subplots(figsize=(style.WIDTH, 3.2))
    tests = [name for name in found if name != "mean"]
    width = 0.8 / len(tests)
    for k, (name, colour) in enumerate(zip(tests, COLOURS)):
        places = [place + (k - (len(tests) - 1) / 2) * width for place in range(len(found))]
        axis.bar_label(axis.bar(places, found[name], width, label=name, color=colour), fmt="%.0f", fontsize=9)
    axis.set_xticks(range(len(found)), [name.replace(" ", "\n") for name in found.index])
    axis.set(ylabel="right answers (%)", ylim=(0, 118))
    axis.legend(loc="upper right", ncols=len(tests))
    return figure
