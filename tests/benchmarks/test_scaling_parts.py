"""The measurements of parts, once each, on the real parts."""

import pytest
from queueing import measure_parts
from queueing.timing import measure


@pytest.fixture(autouse=True)
def once(monkeypatch):
    monkeypatch.setattr(measure_parts, "ADAPTER_MB", (0.3, 1))
    monkeypatch.setattr(measure_parts, "measure", lambda work, repeats, warm_up=0: measure(work, 1, 0))


def kinds(records):
    assert all(record["free_s"] > 0 and record["repeats"] == 1 for record in records)
    return [record["kind"] for record in records]


def test_payloads_are_received_and_prepared(tmp_path):
    records = measure_parts.measure_payloads(tmp_path)
    assert kinds(records) == ["receive", "prepare"] * 3
    assert [record["tokens"] for record in records[::2]] == [64 * 16, 64 * 256, 256 * 64]


def test_requests_of_each_kind_are_answered(tmp_path):
    records = measure_parts.measure_routes(tmp_path)
    assert [record["kind"] for record in records] == ["completion"] * 3 + ["look", "versions"]
    assert all(record["core_s"] > 0 for record in records)


def test_checkpoints_are_written_read_and_pulled(tmp_path):
    assert kinds(measure_parts.measure_checkpoints(tmp_path)) == ["write", "read"] * 2
    small, large = measure_parts.measure_pulls(tmp_path)
    assert small["free_s"] > 0 and large["megabytes"] == pytest.approx(1, rel=0.01)  # the adapter alone is pulled


def test_the_transactions_of_jobs_are_measured(tmp_path):
    records = measure_parts.measure_store(f"sqlite:///{tmp_path / 'store.db'}")
    named = {record["kind"]: record for record in records}
    assert list(named)[:6] == ["add", "claim", "started", "gradient_step", "renew", "complete"]
    assert named["complete"]["repeats"] == 60  # every job ended, else the next one isn't claimed
    assert {"find_key", "resolve", "versions", "claim_none"} < set(named)


def test_gradient_steps_of_each_length_are_measured():
    records = measure_parts.measure_learner()
    assert [record["tokens"] for record in records] == [128, 256, 512, 1024]
