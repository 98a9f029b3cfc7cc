"""`PROFILE=paper`, Tables 1 to 3, from download to executed notebook, against stand-ins of hub, sets and judge.

Tiny checkpoints in the published layouts under the published ids, a few items a set, everything else as the shipped
profile says it; the commands are the user's, in processes of their own.
"""

import http.server
import json
import math
import os
import subprocess
import sys
import threading

import published
import pytest
import tiny_benchmarks
import yaml
from small_plan import ROOT, write
from test_hub_sets import offered
from test_own_hub import Hub
from test_published_sets import Sets, md5

from emkit.alignment.sources import JsonlSource
from emkit.schema import load_yaml
from eval import scores
from eval.plan import Plan

COUNTS = {"VizWiz": 3, "GQA": 3, "MathVista": 5, "MATH-Vision": 6, "ChartQA": 4, "TextVQA": 2, "OCRVQA": 3}
COUNTS |= {"RefCOCO": 2, "RefCOCO+": 2, "RefCOCOg": 2}
FILES = {"MATH-Vision": "MathVision_MINI", "RefCOCO+": "RefCOCO", "RefCOCOg": "RefCOCO", "OCRVQA": "OCRVQA_TESTCORE"}
FILES |= {"GQA": "GQA_TestDev_Balanced", "ChartQA": "ChartQA_TEST", "TextVQA": "TextVQA_VAL"}
FILES |= {"MathVista": "MathVista_MINI"}
# of the two mathematical sets those of the categories whose mean the paper's value is
SCORED = COUNTS | {"MathVista": 4, "MATH-Vision": 5}
TEXTS = {"AlpacaEval": 2, "GSM8K": 2, "MATH": 7, "HumanEval": 1, "MBPP": 2}
LAYOUTS = {"internvl": published.internvl_chat, "qwen2_vl": published.qwen2_vl, "mistral": published.mistral}
TABLES = {"table1": "internvl", "table2": "qwen2_vl", "table3": "mistral"}


class World(Hub):
    """Hub, sets and judge behind one address."""

    asked: list = []  # noqa: RUF012 - of hub and sets together
    files: dict[str, bytes] = {}  # noqa: RUF012
    breaks, judged = 0, 0

    def do_GET(self):
        (Sets if self.path.startswith("/sets/") else Hub).do_GET(self)

    do_HEAD = do_GET

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.headers["Authorization"] == "Bearer sk-stand-in"
        type(self).judged += 1
        choice = {"index": 0, "message": {"role": "assistant", "content": "7"}, "finish_reason": "stop"}
        if request.get("logprobs"):  # which of two answers is better: the first, three times in four
            odds = [{"token": t, "logprob": math.log(p), "bytes": None} for t, p in (("m", 0.75), ("M", 0.25))]
            choice["message"]["content"] = "m"
            choice["logprobs"] = {"content": [{**odds[0], "top_logprobs": odds}], "refusal": None}
        body = {"id": "x", "object": "chat.completion", "created": 0, "model": request["model"], "choices": [choice]}
        body["usage"] = {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The address, and the folder in which a user works."""
    home = tmp_path_factory.mktemp("paper")
    before = dict(Hub.models)
    Hub.models |= offered()
    for backbone, layout in LAYOUTS.items():
        models = shipped(backbone)["models"]
        names = {"base": models["base"], **models["experts"]}
        base = layout(home / backbone / "base", **({"chat": False} if backbone == "mistral" else {}))
        for seed, (role, name) in enumerate(names.items()):
            folder = base if role == "base" else layout(home / backbone / role, seed, like=base)
            Hub.models[name] = {file.name: file.read_bytes() for file in folder.iterdir()}
    tiny_benchmarks.write_all(home / "toys")
    Sets.files = World.files = {file.name: file.read_bytes() for file in (home / "toys").iterdir()}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), World)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", home
    server.shutdown()
    server.server_close()
    Hub.models.clear()
    Hub.models.update(before)


def shipped(backbone):
    return load_yaml((ROOT / f"eval/profiles/paper/{backbone}.yaml").read_text(), backbone)


def stand_in(table, address, home, out):
    """The shipped profile with the stand-in's judge, sets and sizes, and four rows of the table."""
    profile = shipped(TABLES[table])
    expert = next(iter(profile["models"]["experts"]))
    profile |= {"name": "stand_in", "asked_as": "paper", "device": "cpu", "seeds": [0], "sources": {}}
    profile["calibration"] |= {"samples": 2, "max_new_tokens": 4}
    profile["calibration"]["files"] = {
        name: str(out / "prompts" / f"{name}.jsonl") for name in profile["models"]["experts"]
    }
    profile["protocol"] |= {"judge_upstream": f"{address}/v1", "judge_max_usd": 1, "request_seconds": 300}
    own = profile["protocol"]["of_column"] = {name: {"n": n, "max_new_tokens": 4} for name, n in TEXTS.items()}
    for name, n in COUNTS.items():
        file = f"{FILES.get(name, name)}.tsv"
        own[name] = {"n": n, "max_new_tokens": 4, "url": f"{address}/sets/{file}", "md5": md5(file)}
    profile["methods"]["expert_merging"]["optimiser"]["steps"] = 2
    said = yaml.safe_load((ROOT / f"eval/tables/{table}.yaml").read_text())
    rows = [
        {"id": "base", "label": "Base", "method": "checkpoint", "model": "base"},
        {"id": "expert", "label": "Expert", "method": "checkpoint", "model": expert},
        {"id": "task_arithmetic", "label": "Task Arithmetic", "method": "task_arithmetic"},
        {"id": "expert_merging", "label": "Expert Merging", "method": "expert_merging"},
    ]
    out.mkdir()
    return write(out, {"title": said["title"], "columns": said["columns"], "rows": rows}, profile)


def run(paths, home, results, address=None, **environment):
    known = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "EMKIT_", "OPENAI"))}
    known |= {"HF_HUB_CACHE": str(home / "hub"), "XDG_CACHE_HOME": str(home / "cache"), "HF_HUB_DISABLE_XET": "1"}
    known |= {"HF_ENDPOINT": address} if address else {"HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "eval", "reproduce", paths[0], "--profile", paths[1], "--results", results]
    given = [*map(str, command), "--jobs", "2", "--max-usd", "1"]
    return subprocess.run(given, cwd=ROOT, env=known | environment, capture_output=True, text=True, timeout=1200)


def cells(plan):
    return {(job.row, name): scores.read_cell(plan.cell(job, name)) for job in plan.jobs for name in plan.benchmarks}


@pytest.mark.parametrize("table", TABLES)
def test_from_download_to_executed_notebook_and_again_without_a_network(table, world, tmp_path):
    address, home = world
    paths, results = stand_in(table, address, home, tmp_path / "run"), tmp_path / "results"
    judged = World.judged
    done = run(paths, home, results, address, OPENAI_API_KEY="sk-stand-in")
    assert done.returncode == 0, done.stdout + done.stderr
    plan = Plan(*paths, results)
    found = cells(plan)
    assert len(found) == 4 * len(plan.benchmarks) and {cell.status for cell in found.values()} == {"ok"}
    assert all(cell.data_sha256 for cell in found.values())
    assert {name: cell.n for (_, name), cell in found.items()} == {n: (SCORED | TEXTS)[n] for n in plan.benchmarks}
    assert World.judged > judged and "sk-stand-in" not in done.stdout + done.stderr
    assert set(plan.profile.checkpoints.values()) <= set(json.loads(plan.revisions.read_text()))
    notebook = json.loads(plan.notebook.read_text())
    assert all(cell.get("execution_count") for cell in notebook["cells"] if cell["cell_type"] == "code")
    assert all(JsonlSource(plan.profile.calibration.files).lines(task) for task in plan.profile.models.experts)
    csv = plan.csv.read_text()
    # two rows again from what is kept: no hub, no sets, and the judge's replies replayed
    for row in ("base", "expert_merging"):
        for file in (plan.home / plan.backbone / row).rglob("*.json"):
            file.unlink()
    before = len(World.asked), World.judged
    again = run(paths, home, results, JUDGE="replay")
    assert again.returncode == 0, again.stdout + again.stderr
    assert (len(World.asked), World.judged) == before
    assert plan.csv.read_text() == csv
