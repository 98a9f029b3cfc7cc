"""The scoring worker end to end: prompts, scores worked out by hand, the judge, and a worker that is killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from typing import get_args

import pytest
import text_benchmarks
import tiny_benchmarks
import tiny_models as tiny

from emkit.errors import UserError
from emkit.files import write_json
from eval import columns, judge, scores
from eval.alpaca import client as alpaca
from eval.columns.kinds import VLMEvalKit
from eval.judge import rules
from eval.judge.upstream import UpstreamError
from eval.lm import client as lm
from eval.vlm import client, harness
from eval.workers.watch import Watch

RIGHT_BOX, WRONG_BOX = "[250,250,500,500]", "[0,0,100,100]"  # thousandths; the true box is (8, 6, 16, 12) of 32 x 24

# benchmark -> (predictions in order, value, scores)
CASES = {
    "VizWiz": (["7", "red cup", "unanswerable"], 100 * (1 + (2 * 1 / 3 + 8 * 2 / 3) / 10 + 1) / 3, None),
    "GQA": (["No", "blue", "none"], 200 / 3, [1, 0, 1]),
    "OCRVQA": (["042", "7", ""], 200 / 3, [1, 1, 0]),  # stock VLMEvalKit: 0.0
    "ChartQA": (["104", "0.53", "red", "twenty"], 50.0, [1, 0, 1, 0]),  # within 5 %, or the same text
    "TextVQA": (["7", "stop."], 100.0, [1, 1]),
    "RefCOCO": ([RIGHT_BOX, WRONG_BOX], 50.0, [1, 0]),
    "RefCOCO+": (["no\tbox\r\n\"'[", f"it is at {RIGHT_BOX}."], 50.0, [0, 1]),
    "RefCOCOg": (["[260,240,500,510]", RIGHT_BOX], 100.0, [1, 1]),
    # geometry reasoning: items 0, 1, 3 right of 0, 1, 3; algebraic: 0, 3 of 0, 2, 3; solving: 0, 1, 3; item 4 in none
    "MathVista": (["the answer is 12.", "20", "2", "about 1.5 cm", "four"], 100 * (1 + 2 / 3 + 1) / 3, [1, 1, 0, 1, 0]),
    # angle 1/1, area 1/2, length 1/1, solid 0/1; item 5 is of no counted category
    "MATH-Vision": (["30", "(B)", "0.5", "43", "9**9**9", "9"], 100 * (1 + 0.5 + 1 + 0) / 4, [1, 1, 1, 0, 0, 1]),
}


COLUMNS = {name: columns.load(name) for name in CASES}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A data folder with its own worker, which ends with the folder's socket."""
    folder = tmp_path_factory.mktemp("data").resolve()
    tiny_benchmarks.write_all(folder)
    yield folder
    client.socket_path(folder).unlink(missing_ok=True)


@pytest.fixture(scope="module")
def judge_url(tmp_path_factory):
    with judge.running(tmp_path_factory.mktemp("judge")) as url:
        yield url


def predictions(data, benchmark: str, texts: list[str]) -> dict[str, str]:
    return dict(zip([prompt.index for prompt in client.prompts(data, COLUMNS[benchmark])], texts, strict=True))


def worker_pid(data) -> int:
    client.versions(data)
    return int(client.socket_path(data).with_suffix(".alive").read_text())


def test_every_class_that_a_column_may_name_has_its_reader_and_every_vlmevalkit_column_a_case():
    known = get_args(VLMEvalKit.model_fields["dataset_class"].annotation)
    assert set(known) == set(harness._READERS)
    assert set(CASES) == {name for name in columns.names() if columns.load(name).harness == "vlmevalkit"}


@pytest.mark.parametrize("benchmark", CASES)
def test_scores_are_those_worked_out_by_hand(data, judge_url, benchmark):
    texts, value, scores = CASES[benchmark]
    result = client.evaluate(data, COLUMNS[benchmark], predictions(data, benchmark, texts), judge_url=judge_url)
    assert result.value == pytest.approx(value)
    assert [item["prediction"] for item in result.items] == texts
    assert [item["index"] for item in result.items] == [
        prompt.index for prompt in client.prompts(data, COLUMNS[benchmark])
    ]
    if scores:
        assert [item["score"] for item in result.items] == scores
    assert result.n == sum(bool(item["groups"]) for item in result.items) or not COLUMNS[benchmark].parts
    assert result.harness["name"] == "VLMEvalKit" and result.harness["dataset"] == COLUMNS[benchmark].dataset


def test_prompts_are_the_class_own(data):
    suffix = "\nAnswer the question using a single word or phrase."
    assert [p.text for p in client.prompts(data, COLUMNS["GQA"])] == [
        f"is it red{suffix}",
        f"what color{suffix}",
        f"sport{suffix}",
    ]
    assert client.prompts(data, COLUMNS["MathVista"])[2].text == "what is x"
    (first, second) = client.prompts(data, COLUMNS["RefCOCO+"])
    assert (first.index, second.index) == ("RefCOCO+_val_2", "RefCOCO+_val_3")
    assert first.image.size == (32, 24) and first.image.getpixel((0, 0)) == (14, 80, 160)


def test_prompts_are_kept_until_the_table_changes(data):
    kept = data / "prompts" / "TextVQA.jsonl"
    before = [p.text for p in client.prompts(data, COLUMNS["TextVQA"])]
    stamp = kept.stat().st_mtime_ns
    client.prompts(data, COLUMNS["TextVQA"])
    assert kept.stat().st_mtime_ns == stamp
    tsv = data / "TextVQA_VAL.tsv"
    original = tsv.read_text()
    tsv.write_text(original.replace("what number", "which number"))
    try:
        assert client.prompts(data, COLUMNS["TextVQA"])[0].text == before[0].replace("what", "which")
    finally:
        tsv.write_text(original)
    assert [p.text for p in client.prompts(data, COLUMNS["TextVQA"])] == before


def test_a_model_that_writes_programs_runs_none(data, judge_url, tmp_path):
    target = tmp_path / "made"
    program = f'__import__("os").system("touch {target}")'
    for benchmark in CASES:
        count = len(client.prompts(data, COLUMNS[benchmark]))
        result = client.evaluate(
            data, COLUMNS[benchmark], predictions(data, benchmark, [program] * count), judge_url=judge_url
        )
        assert result.value == 0.0
    assert not target.exists()


def test_scoring_twice_gives_the_same(data, judge_url):
    answers = predictions(data, "MathVista", CASES["MathVista"][0])
    first, second = (client.evaluate(data, COLUMNS["MathVista"], answers, judge_url=judge_url) for _ in range(2))
    assert asdict(first) == asdict(second)


def test_predictions_must_fit_the_items(data):
    answers = predictions(data, "GQA", ["a", "b", "c"])
    with pytest.raises(UserError, match="1 missing, 1 of unknown"):
        client.evaluate(data, COLUMNS["GQA"], {**{k: v for k, v in answers.items() if k != "0"}, "x": "y"})
    with pytest.raises(UserError, match="is not text"):
        client.evaluate(data, COLUMNS["GQA"], {**answers, "0": None})
    with pytest.raises(UserError, match="unknown benchmark 'Vizwiz': did you mean 'VizWiz'"):
        columns.load("Vizwiz")
    with pytest.raises(UserError, match="no data folder"):
        client.prompts(data / "absent", COLUMNS["GQA"])


class TestJudge:
    """A judge that fails leaves no score: VLMEvalKit alone would count its items as wrong."""

    def test_none_given(self, data):
        with pytest.raises(client.NoJudge, match="none was given"):
            client.evaluate(data, COLUMNS["MathVista"], predictions(data, "MathVista", ["1"] * 5))

    def test_nobody_listens(self, data):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{free.getsockname()[1]}/v1/chat/completions"
        start = time.monotonic()
        with pytest.raises(client.NoJudge, match="does not answer"):
            client.evaluate(data, COLUMNS["MATH-Vision"], predictions(data, "MATH-Vision", ["1"] * 6), judge_url=url)
        assert time.monotonic() - start < 15

    def test_it_fails_after_hello(self, data, tmp_path, monkeypatch):
        def reply(prompt):
            if prompt == "hello":
                return rules.GREETING
            raise UpstreamError("down")

        monkeypatch.setattr(rules, "reply", reply)
        with judge.running(tmp_path) as url, pytest.raises(client.NoJudge, match="failed on 2 of 5 items"):
            client.evaluate(
                data, COLUMNS["MathVista"], predictions(data, "MathVista", ["12", "20", "0", "1.5", "x"]), judge_url=url
            )


class TestWorker:
    def test_one_worker_serves_all(self, data):
        assert worker_pid(data) == worker_pid(data)

    def test_a_killed_worker_is_replaced(self, data):
        pid = worker_pid(data)
        os.kill(pid, signal.SIGKILL)
        assert client.versions(data)["ms-vlmeval"]
        assert worker_pid(data) != pid

    def test_two_clients_at_once_share_one_worker(self, data):
        os.kill(worker_pid(data), signal.SIGKILL)
        code = f"from eval.vlm import client; client.versions({str(data)!r})"
        processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
        assert [process.wait() for process in processes] == [0, 0]
        pid = worker_pid(data)
        assert json.loads(json.dumps(client.versions(data)))["ms-vlmeval"] and worker_pid(data) == pid

    def test_it_holds_no_key(self, data, monkeypatch):
        os.kill(worker_pid(data), signal.SIGKILL)
        monkeypatch.setenv("OPENAI_API_KEY", "sk-a-key-that-must-not-appear")
        monkeypatch.setenv("HF_TOKEN", "hf-a-token-that-must-not-appear")
        with open(f"/proc/{worker_pid(data)}/environ") as file:
            environment = file.read()
        assert "must-not-appear" not in environment and f"LMUData={data}" in environment

    def test_it_ends_when_its_socket_is_removed(self, data):
        pid = worker_pid(data)
        client.socket_path(data).unlink()
        deadline = time.monotonic() + 10
        while _alive(pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not _alive(pid)
        assert worker_pid(data) != pid

    def test_scoring_that_takes_too_long_is_an_error_and_the_next_request_has_a_fresh_worker(self, data):
        pid = worker_pid(data)
        assert os.getpgid(pid) == pid != os.getpgid(0)
        answers = predictions(data, "MathVista", ["12"] * 5)
        with socket.socket() as silent:  # a judge that takes calls and never answers
            silent.bind(("127.0.0.1", 0))
            silent.listen(64)
            url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1/chat/completions"
            with pytest.raises(UserError, match=r"at MathVista for more than 2 s.*raise request_seconds") as caught:
                client.evaluate(data, COLUMNS["MathVista"], answers, judge_url=url, seconds=2)
        assert "\n" not in str(caught.value)
        deadline = time.monotonic() + 10
        while _alive(pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not _alive(pid)
        assert client.evaluate(data, COLUMNS["GQA"], predictions(data, "GQA", ["No", "blue", "none"])).n == 3
        assert worker_pid(data) != pid

    def test_a_worker_that_hangs_over_a_dead_clients_request_is_replaced(self, data):
        answers = {prompt.index: "No" for prompt in client.prompts(data, COLUMNS["GQA"])}
        pid = worker_pid(data)
        os.kill(pid, signal.SIGSTOP)
        write_json(client.socket_path(data).with_suffix(".work"), {"id": "a dead client's", "until": 0})
        assert client.evaluate(data, COLUMNS["GQA"], answers, seconds=3).n == 3
        assert worker_pid(data) != pid and not _alive(pid)

    def test_waiting_for_another_request_is_no_hanging(self, tmp_path):
        work, killed = tmp_path / "w.work", []
        write_json(work, {"id": "another's", "until": time.monotonic() + 1.5})
        with subprocess.Popen(["sleep", "60"], process_group=0) as worker:
            with Watch(worker.pid, work, "ours", 0.2) as watch:
                time.sleep(0.8)
                killed.append(worker.poll())
                worker.wait(20)
            killed.append(worker.returncode)
        assert killed == [None, -signal.SIGKILL] and not watch.killed_ours

    def test_a_worker_that_cannot_start_shows_its_log(self, data, tmp_path, monkeypatch):
        other = tmp_path / "data"
        other.mkdir()
        (tmp_path / "pandas.py").write_text("raise RuntimeError('this pandas is broken')")
        whole = client._service
        broken = {"PYTHONPATH": str(tmp_path)}
        monkeypatch.setattr(
            client, "_service", lambda data: replace(found := whole(data), environment=found.environment | broken)
        )
        with pytest.raises(UserError, match="could not start") as caught:
            client.versions(other)
        assert "this pandas is broken" in str(caught.value)

    def test_a_missing_table_is_one_clear_line(self, data, tmp_path):
        with pytest.raises(UserError, match="no benchmark data"):
            client.prompts(tmp_path, COLUMNS["GQA"])


def _alive(pid: int) -> bool:
    """Whether the process runs still (a zombie, not yet waited for by us, does not)."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


# ---- the items of every harness
HOSTILE = 'one\u2028two\n\t\x00 <|im_end|> {output_2} "\\ \U0001f40d'


def from_vlmevalkit(data, folder, judge_base_url):
    return client.evaluate(data, COLUMNS["GQA"], predictions(data, "GQA", ["no", HOSTILE, ""]))


def from_lm_eval(data, folder, judge_base_url):
    text_benchmarks.write("validation", folder, {"MBPP": 3})
    tiny.save(tiny.language_model("mistral"), folder / "model")
    return lm.evaluate(folder, [columns.load("MBPP")], folder / "model")["MBPP"]


def from_alpaca_eval(data, folder, judge_base_url):
    text_benchmarks.write("validation", folder, {"AlpacaEval": 3})
    asked = columns.load("AlpacaEval")
    answers = dict(zip([prompt.index for prompt in alpaca.prompts(folder, asked)], ["no", HOSTILE, ""], strict=True))
    return alpaca.evaluate(folder, asked, answers, judge_base_url)


@pytest.mark.parametrize("evaluate", [from_vlmevalkit, from_lm_eval, from_alpaca_eval])
def test_every_harness_gives_the_items_that_a_score_file_holds(data, judge_url, evaluate, tmp_path):
    result = evaluate(data, tmp_path, judge_url.removesuffix("/chat/completions"))
    keys = ("recipe_sha256", "model_sha256", "data_sha256")
    about = {"row": "ta", "seed": 0, "benchmark": "X", **dict.fromkeys(keys, "0")}
    cell = scores.write_scored(tmp_path / "X.json", result.items, harness=result.harness, **about)
    assert scores.read_cell(tmp_path / "X.json") == cell
    assert scores.read_items(tmp_path / "X.json") == result.items and len(result.items) == 3
    assert (cell.n, cell.value, cell.stderr) == (result.n, pytest.approx(result.value), pytest.approx(result.stderr))
    assert {"name", "version", "dataset"} <= set(cell.harness)
    if evaluate is not from_lm_eval:
        assert result.items[1]["prediction"] == HOSTILE, "an answer is kept as it was given"
