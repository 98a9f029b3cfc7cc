"""What a row's cells say about their judge: its counts, or why there is none. No score ever stands in for one."""

import json
import urllib.error
import urllib.request

import pytest
from small_plan import asked_otherwise, score, small_plan
from test_rows import BASE, Fakes
from text_benchmarks import changed

from emkit.errors import UserError
from emkit.files import write_json
from eval import pipeline, rows, scores
from eval.columns import kinds
from eval.judge import pairs
from eval.judge.spending import Ledger
from eval.places import EVALUATION
from eval.vlm import client

KEY = "sk-a-key-that-must-not-appear"
MODEL = "gpt-4o-mini-2024-07-18"
SERVICE = {"judge_upstream": "https://127.0.0.1:1/v1", "judge_model": MODEL}


class Asking(Fakes):
    """A harness that asks the judge twice and, as VLMEvalKit does, says no more than that it does not answer."""

    def evaluate(self, data, column, predictions, judge_url, seconds):
        if column.name == "MathVista":
            for text in ("hello", pairs._START + " which?"):
                body = json.dumps({"model": "any", "messages": [{"role": "user", "content": text}], "logprobs": True})
                try:
                    urllib.request.urlopen(judge_url, body.encode()).close()
                except urllib.error.HTTPError:
                    raise client.NoJudge("the judge does not answer") from None
        return super().evaluate(data, column, predictions, judge_url, seconds)


@pytest.fixture
def plan(tmp_path, monkeypatch):
    Asking(monkeypatch)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("JUDGE", raising=False)
    monkeypatch.delenv("EMKIT_MAX_USD", raising=False)
    found = small_plan(tmp_path, columns=["MathVista", "GQA"])
    write_json(found.manifest(EVALUATION), {"benchmarks": {name: {"sha256": name} for name in found.benchmarks}})
    return found


def cells(plan):
    rows.run_job(plan, BASE)
    return (scores.read_cell(plan.cell(BASE, name)) for name in plan.benchmarks)


def test_requests_and_unusable_replies_are_counted_in_the_cell(plan, capsys):
    judged, other = cells(plan)
    assert judged.harness == {"name": "fake", "judge": {"requests": 2, "unparsable": 1}}
    assert other.status == "ok" and "judge" not in other.harness
    for job in plan.jobs[1:]:
        for name in plan.benchmarks:
            score(plan, job, name, 1.0)
    assert pipeline.report(plan) == 0
    assert "judge:    2 requests, 1 unparsable replies" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("environment", "changes", "reason"),
    [
        ({}, {"judge_max_usd": 1}, f"the judge does not answer: the judge at {SERVICE['judge_upstream']} needs a key"),
        ({"OPENAI_API_KEY": KEY}, {"judge_max_usd": 0}, "the judge does not answer: the cap of $0 is reached"),
        ({"OPENAI_API_KEY": KEY, "EMKIT_MAX_USD": "0"}, {"judge_max_usd": 1}, "the judge does not answer: the cap"),
        ({"JUDGE": "replay"}, {}, "the judge does not answer: no kept reply for a request"),
        ({}, {}, "the judge at https://127.0.0.1:1/v1 costs money"),
        ({}, {"judge_model": "another", "judge_max_usd": 1}, "no price is known for judge 'another'"),
    ],
)
def test_without_a_judge_the_judged_cells_alone_have_no_score(plan, monkeypatch, capfd, environment, changes, reason):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    asked_otherwise(plan, **SERVICE | changes)
    judged, other = cells(plan)
    assert judged.status == "no judge" and judged.value is None and judged.reason.startswith(reason)
    assert other.status == "ok"
    assert not any(KEY in path.read_text(errors="replace") for path in plan.home.rglob("*") if path.is_file())
    assert KEY not in "".join(capfd.readouterr())
    assert Ledger(plan.judge, 1).spent() == 0 and not list(plan.judge.rglob("??/*.json"))


def test_the_cost_is_said_and_weighed_before_anything_runs(plan, monkeypatch, capsys):
    pipeline.announce_judge(plan)
    assert capsys.readouterr().out == ""  # the rules cost nothing
    asked_otherwise(plan, **SERVICE)
    tokens = kinds.JudgeTokens(prompt=1000.0, reply=100.0)
    plan.protocol = changed(plan.protocol, "MathVista", n=10**5, judge_tokens=tokens)
    with pytest.raises(UserError, match="costs money: say with --max-usd"):
        pipeline.announce_judge(plan)
    jobs = len(plan.jobs)
    each, points = 1e5 * (1000 * 0.15e-6 + 100 * 0.60e-6), len(plan.points("task_arithmetic"))
    validation = plan.protocol.columns["MathVista"].validation_n / 1e5
    total = each * (jobs + points * validation)
    assert f"together about ${total:.2f}; spent so far $0.00; no cap is set" in capsys.readouterr().out
    monkeypatch.setenv("EMKIT_MAX_USD", str(total - 1))
    with pytest.raises(UserError, match=rf"about \${total:.2f} in the end, the cap is .*: raise --max-usd"):
        pipeline.announce_judge(plan)
    monkeypatch.setenv("EMKIT_MAX_USD", str(total + 1))
    pipeline.announce_judge(plan)
    assert "no OPENAI_API_KEY in the environment: judged cells will be 'no judge'" in capsys.readouterr().err
    Ledger(plan.judge, 10**6).reserve(2)
    with pytest.raises(UserError, match="in the end"):
        pipeline.announce_judge(plan)
