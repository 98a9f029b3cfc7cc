"""``emkit bench fit``: its verdicts, its table, its toy gradients, and that a wrong engine is found out."""

import json

import pytest
import torch

from emkit.alignment.arithmetic import Arithmetic
from emkit.bench import fit, fit_cases, report
from emkit.bench.fit_toys import TOY, Workload, make
from emkit.bench.report import Line


@pytest.fixture(scope="module")
def workload(tmp_path_factory):
    return make("mistral", TOY, tmp_path_factory.mktemp("toy"), 2, 3, 20, 6)


def test_verdicts():
    assert Line("a", 1.25, 1.2).verdict == "met" and Line("a", 1.25, 1.3).verdict == "missed"
    assert Line("a", 3.0, 3.1, most=False).verdict == "met" and Line("a", 3.0, 2.9, most=False).verdict == "missed"
    assert Line("a", 1.3, None, not_run="no CUDA device").verdict == "not run: no CUDA device"
    assert Line("a", 1.0, float("nan")).verdict == "missed"
    assert Line("a", 3.0, 3.123, most=False).cells[1:3] == ("≥ 3×", "3.12×")


def test_what_it_leaves_names_machine_versions_and_command(tmp_path):
    text = report.leave(tmp_path, "fit", "Fits", [Line("a step", 1.25, 1.5, details="why")], ["a note"])
    assert (tmp_path / "fit.md").read_text() == text and "| a step | ≤ 1.25× | 1.5× | missed | why |" in text
    found = json.loads((tmp_path / "fit.json").read_text())
    assert found["lines"][0]["verdict"] == "missed" and found["notes"] == ["a note"]
    assert found["machine"]["cores"] and torch.__version__.startswith(found["versions"]["torch"]) and found["date"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, where the lines are measured")
def test_without_a_gpu_its_lines_are_not_run():
    lines = fit.cuda()
    assert len(lines) == 5 and {line.verdict for line in lines} == {"not run: no CUDA device"}


def test_gradients_agree_and_a_wrong_engine_is_found_out(tmp_path, monkeypatch):
    assert [line.verdict for line in fit.gradients(tmp_path / "right")] == ["met"] * 6
    right = Arithmetic.contract
    monkeypatch.setattr(Arithmetic, "contract", lambda *given: right(*given) * (1 + 1e-4))
    assert {line.verdict for line in fit.gradients(tmp_path / "wrong")} == {"missed"}


def test_a_case_in_a_process_of_its_own_tells_its_memory(workload, capsys):
    assert Workload.open(workload.folder, 5).task_vectors().experts == tuple(f"task{k}" for k in range(5))
    for case in ("bare", "plain", "device", "files"):
        fit_cases.main(case, str(workload.folder), "2")
        found = json.loads(capsys.readouterr().out)
        assert found["peak"] > 0
        names = workload.task_vectors().names
        numel = sum(workload.task_vectors().numel(name) for name in names)
        expected = {"bare": 0, "plain": 3 * 4 * numel, "device": (2 + 2 * 4) * numel, "files": 0}
        assert found["resident"] == expected[case]


def test_the_authors_procedure_takes_as_many_samples_as_told(workload):
    start = workload.start()
    whole = fit_cases.plain(workload, workload.model(), None)(start)
    together = fit_cases.plain(workload, workload.model(), None, whole=True)(start)
    one = fit_cases.plain(workload, workload.model(), None, few=1)(start)
    name = next(iter(start.values))
    torch.testing.assert_close(whole[name], together[name], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(one[name], whole[name])
