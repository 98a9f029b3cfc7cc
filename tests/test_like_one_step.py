"""One optimiser step of ``emkit merge --like authors`` against the authors' trainer, rebuilt here in fp32 torch: plain
forwards of whole sequences, autograd, ``torch.optim.AdamW``, ``clip_grad_norm_``."""

import json
import re

import own_models as own
import pytest
import torch
import yaml
from torch.func import functional_call
from transformers import AutoModelForCausalLM, AutoTokenizer

from emkit import cli
from emkit.coefficients import Coefficients

EXCLUDED = re.compile(r".*lm_head.*|.*norm.*|.*embed_tokens.*|.*bias.*")
PROMPTS, TOKENS = 3, 6  # of each of two experts: six micro-steps, still divided by eight


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = own.write_models(tmp_path_factory.mktemp("models"), dtype=torch.float32)
    data = {
        "base": str(folder / "base"),
        "experts": {name: str(folder / name) for name in own.EXPERTS},
        "calibration": {
            "files": {name: str(folder / f"{name}.jsonl") for name in own.EXPERTS},
            "max_new_tokens": TOKENS,
        },
    }
    (folder / "merge.yaml").write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def loaded(models):
    """Base and experts in fp32, and of each expert its prompts with its own greedy responses, as ids [1, n]."""
    found = {name: AutoModelForCausalLM.from_pretrained(models / name).eval() for name in ("base", *own.EXPERTS)}
    asked = {}
    for name in own.EXPERTS:
        words = AutoTokenizer.from_pretrained(models / name)
        asked[name] = []
        for line in (models / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
            turn = [{"role": "user", "content": json.loads(line)["prompt"]}]
            text = words.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
            start = words(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
            made = found[name].generate(start, max_new_tokens=TOKENS, do_sample=False, pad_token_id=0)
            response = words.decode(made[0, start.shape[1] :], skip_special_tokens=True)
            end = words(response + words.eos_token, add_special_tokens=False, return_tensors="pt")["input_ids"]
            asked[name].append(torch.cat([start, end], dim=1).long())
    return found, asked


def authors_step(loaded, initial: float, hidden_weight: float, gamma: float) -> dict[str, torch.Tensor]:
    """α [K, 1] of every tensor after the one step."""
    found, asked = loaded
    base = dict(found["base"].named_parameters())
    names, k = [name for name in base if not EXCLUDED.match(name)], len(own.EXPERTS)
    taus = {n: [dict(found[e].named_parameters())[n] - base[n] for e in own.EXPERTS] for n in names}
    anchor = torch.tensor([initial] * k)
    w = {name: torch.nn.Parameter(torch.logit(anchor).unsqueeze(-1).repeat(1, 1)) for name in names}
    optimiser = torch.optim.AdamW(w.values(), lr=0.5, weight_decay=1e-5)
    middle = found["base"].config.num_hidden_layers // 2
    for expert in own.EXPERTS:
        for ids in asked[expert]:
            weights = dict(base)
            for name in names:
                alpha = torch.sigmoid(w[name])
                weights[name] = base[name] + sum(tau.detach() * alpha[i, 0] for i, tau in enumerate(taus[name]))
            student = functional_call(found["base"], weights, (), {"input_ids": ids, "output_hidden_states": True})
            with torch.no_grad():
                teacher = found[expert](input_ids=ids, output_hidden_states=True)
            p = torch.softmax(teacher.logits, dim=-1)
            loss = -(p * torch.log_softmax(student.logits, dim=-1)).sum(dim=-1).mean()
            hidden = zip(student.hidden_states, teacher.hidden_states, strict=True)
            loss = loss + hidden_weight * torch.nn.functional.mse_loss(*list(hidden)[middle])
            far = sum((torch.sigmoid(value) - anchor.view(-1, 1)).abs().sum() for value in w.values())
            loss = loss + gamma * far / (sum(value.numel() for value in w.values()) / k)
            (loss / 8).backward()
    torch.nn.utils.clip_grad_norm_(w.values(), 1.0)
    optimiser.step()
    return {name: torch.sigmoid(value).detach() for name, value in w.items()}


def merged(models, out, *more: str):
    given = ["merge", str(models / "merge.yaml"), "--method", "expert_merging", "--like", "authors", "--device", "cpu"]
    assert cli.main([*given, "--cache", str(models / "cache"), "--out", str(out), *more]) == 0
    return Coefficients.load(out / "coefficients.json")


@pytest.mark.parametrize("gamma", [None, 0.0, 0.02, 5.0])
@pytest.mark.parametrize("hidden_weight", [None, 0.7])
@pytest.mark.parametrize("initial", [0.1, 0.17, 0.2, 0.3])
def test_one_step_is_that_of_their_trainer(models, loaded, tmp_path, initial, hidden_weight, gamma):
    more = [] if hidden_weight is None else ["--option", f"hidden_weight={hidden_weight}"]
    more += [] if gamma is None else ["--option", f"gamma={gamma}"]
    found = merged(models, tmp_path / "merged", "--scale", str(initial), *more)
    wanted = authors_step(loaded, initial, hidden_weight or 0.0, 0.8 if gamma is None else gamma)
    assert set(found.values) == set(wanted) and len(wanted) == 14
    for name, alpha in wanted.items():
        torch.testing.assert_close(torch.tensor(found.values[name]).float(), alpha, atol=1e-5, rtol=0, msg=name)
        assert (alpha - initial).abs().min() > 1e-3
