"""``emkit bench fit``: its verdicts, its table, its toy gradients, and that a wrong engine is found out."""

import json

import pytest
import torch

from emkit.alignment.arithmetic import Arithmetic
from emkit.bench import fit, fit_cuda, measure, passes, report
from emkit.bench.passes import Case
from emkit.bench.report import Line
from emkit.bench.workload import TOY, Workload, make


@pytest.fixture(scope="module")
def workload(tmp_path_factory):
    return make(TOY, tmp_path_factory.mktemp("toy"), 2, 3, 20, 4)


def test_verdicts():
    assert Line("a", 1.25, 1.2).verdict == "met" and Line("a", 1.25, 1.3).verdict == "missed"
    assert Line("a", 3.0, 3.1, most=False).verdict == "met" and Line("a", 3.0, 2.9, most=False).verdict == "missed"
    assert Line("a", 1.3, None, not_run="no CUDA device").verdict == "not run: no CUDA device"
    assert Line("a", 1.0, float("nan")).verdict == "missed"
    assert Line("a", 3.0, 3.123, most=False).cells[1:3] == ("≥ 3×", "3.12×")


def test_what_it_leaves_names_machine_versions_and_command(tmp_path):
    lines = [Line("a step", 1.25, 1.5, details="why")]
    value, text = report.promises("Fits", report.stated("emkit bench fit"), lines, ["a note"])
    report.leave(tmp_path / "fit", value, text)
    assert (tmp_path / "fit.md").read_text() == text and "| a step | ≤ 1.25× | 1.5× | missed | why |" in text
    found = json.loads((tmp_path / "fit.json").read_text())
    assert found["lines"][0]["verdict"] == "missed" and found["notes"] == ["a note"]
    assert found["machine"]["cores"] and torch.__version__.startswith(found["versions"]["torch"]) and found["date"]
    assert found["command"] == "emkit bench fit" and "    emkit bench fit\n" in text


def test_without_a_gpu_its_lines_are_not_run():
    lines = fit_cuda.unmeasured("no CUDA device")
    assert len(lines) == 3 and {line.verdict for line in lines} == {"not run: no CUDA device"}


def test_gradients_agree_and_a_wrong_engine_is_found_out(workload, monkeypatch):
    assert fit.gradients(workload).verdict == "met"
    right = Arithmetic.contract
    monkeypatch.setattr(Arithmetic, "contract", lambda *given: right(*given) * (1 + 1e-4))
    assert fit.gradients(workload).verdict == "missed"


def test_a_case_in_a_process_of_its_own_tells_its_memory(workload, capsys):
    assert Workload.open(workload.folder, 5).task_vectors().experts == tuple(f"task{k}" for k in range(5))
    vectors = workload.task_vectors()
    numel = sum(vectors.numel(name) for name in vectors.names)
    for case, resident in {"bare": 0, "plain": 3 * 4 * numel, "device": (2 + 2 * 4) * numel, "files": 0}.items():
        passes.main(case, str(workload.folder), "2")
        assert int(capsys.readouterr().out) == resident
    peak, resident = fit._peak("device", workload, 2)
    assert peak > 50 * measure.MB and resident == (2 + 2 * 4) * numel


def test_the_authors_procedure_takes_as_many_samples_as_told(workload):
    start = workload.start()
    whole = passes.plain(Case.of(workload))(start)
    together = passes.plain(Case.of(workload), whole=True)(start)
    one = passes.plain(Case.of(workload), few=1)(start)
    name = next(iter(start.values))
    torch.testing.assert_close(whole[name], together[name], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(one[name], whole[name])


def test_a_pass_leaves_the_model_free_of_hooks_and_gradients(workload):
    case = Case.of(workload)
    passes.bare(case)()
    with passes.step(case, passes.OnDevice(case.vectors, "cpu", torch.float32)) as step:
        assert step()["step"] == 0 and step()["step"] == 1
    assert all(p.grad is None and not p._post_accumulate_grad_hooks for p in case.model.parameters())
