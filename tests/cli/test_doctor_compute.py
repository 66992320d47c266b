"""`tandem doctor` computes with a real learner and a real engine, on the CPU."""

import pytest

from tandem.cli.doctor import compute
from tandem.cli.doctor.report import FaultError, Report
from tandem.runs.reporting.console import PlainConsole


@pytest.mark.slow
def test_a_learner_and_an_engine_agree_on_the_cpu():
    report = Report(PlainConsole())
    compute.check_compute(report, [], "cpu", "builtin:tiny")
    assert [line.name for line in report.lines] == ["CPU attention", "CPU learner", "CPU engine"]
    assert report.is_ok, report.lines
    assert "trained tokens/s" in report.lines[1].text and "scored tokens/s" in report.lines[2].text


def test_a_part_that_fails_says_why(tmp_path):
    with pytest.raises(FaultError, match="Unrecognized"):
        compute._run(compute.LEARNER, {}, "cpu", str(tmp_path), str(tmp_path))


def test_a_part_that_hangs_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(compute, "DEVICE_TIMEOUT_S", 0.01)
    with pytest.raises(FaultError, match="No answer"):
        compute._run(compute.LEARNER, {}, "cpu", "builtin:tiny", str(tmp_path))


def test_results_that_differ_are_faults(monkeypatch):
    learner = {"attention": "a", "attention_difference": 0.5, "probe": [-1.0], "dtype": "float32", "tokens_per_s": 1.0}
    answers = [learner, learner | {"attention_difference": 0.0}, {"probe": [-1.5], "tokens_per_s": 1.0}]
    monkeypatch.setattr(compute, "_run", lambda *_: answers.pop(0))
    found = []
    for _ in range(2):
        report = Report(PlainConsole())
        compute.check_compute(report, [], "cpu", "builtin:tiny")
        found.append([line.is_ok for line in report.lines])
    assert found == [[False], [True, True, False]]
