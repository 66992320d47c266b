"""The examination finds each kind of broken promise."""

import pytest
import torch
from examination import check_checkpoints, check_digests, check_jobs, check_rollouts, check_versions
from fault_load import AcceptedJob, Model, Rollout
from outcome import Event, Findings, Job, ModelOutcome, Version

from tandem.rl.checkpoints import OPTIMIZER, LearnerState, write_checkpoint

MODEL = Model("model", "default/faults/m0")
WELL = ("training_started", "gradient_step", "training_ended")


def a_job(number, step=None, types=WELL, state="succeeded", first_seq=1, error=None):
    events = tuple(Event(seq, type, number + seq / 10) for seq, type in enumerate(types, first_seq))
    return Job(f"job{number}", state, step, error, created_at=number, events=events)


def outcome_of(*jobs, steps=(1, 2)):
    return ModelOutcome(MODEL.id, jobs, tuple(Version(step, f"digest{step}", float(step)) for step in steps))


def accepted(*ids):
    return [AcceptedJob(id, MODEL, f"key{number}", b"{}") for number, id in enumerate(ids)]


def test_a_flawless_outcome_has_no_findings():
    findings, outcome = Findings(), outcome_of(a_job(1, 1), a_job(2, 2))
    check_jobs(accepted("job1", "job2"), [outcome], findings)
    check_versions(outcome, findings)
    check_digests(outcome, ["digest1", "digest2"], findings)
    rollouts = [Rollout(MODEL, 9.0, 9.5, 2, "digest2"), Rollout(MODEL, 0.5, 9.5, 0, "zero")]
    check_rollouts([*rollouts, Rollout(MODEL, 9.2, 9.6, 1, "digest1")], [outcome], findings)
    assert findings == Findings()


@pytest.mark.parametrize(
    ("jobs", "ids", "blame", "said"),
    [
        ([a_job(1, 1)], ["job1", "job2"], {"lost": {"job2"}}, "isn't listed"),
        ([a_job(1, 1)], ["job1", "job1"], {"lost": {"job1"}}, "2 requests"),
        ([a_job(1, 1), a_job(2, 2)], ["job1"], {"doubled": {"job2"}}, "no accepted request"),
        ([a_job(1, None, ("training_started",), "running")], ["job1"], {"lost": {"job1"}}, "hasn't ended"),
        ([a_job(1, 1, ("training_started",))], ["job1"], {"lost": {"job1"}}, "hasn't ended"),
        ([a_job(1, 1, ("training_ended", "training_ended"))], ["job1"], {"doubled": {"job1"}}, "ended 2 times"),
        ([a_job(1, 1, ("training_ended", "gradient_step"))], ["job1"], {"doubled": {"job1"}}, "went on after"),
        ([a_job(1, 1, ("training_failed",))], ["job1"], {"lost": {"job1"}}, "last event is training_failed"),
        ([a_job(1, 1, ("training_started", *WELL))], ["job1"], {"doubled": {"job1"}}, "started 2 times"),
        ([a_job(1, None, ("training_failed",), "failed", error="why")], ["job1"], {"failed": {"job1"}}, "failed: why"),
        ([a_job(1, 1, first_seq=2)], ["job1"], {"lost": {"job1"}}, "numbered [2, 3, 4]"),
    ],
)
def test_a_broken_promise_about_a_job(jobs, ids, blame, said):
    findings = Findings()
    check_jobs(accepted(*ids), [outcome_of(*jobs)], findings)
    [sentence] = findings.sentences
    assert said in sentence
    assert {kind: blamed for kind, blamed in findings.blamed.items() if blamed} == blame


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        (outcome_of(a_job(1, 1), a_job(2, 3), steps=(1, 3)), "has the versions [1, 3]"),
        (outcome_of(a_job(1, 1), a_job(2, 1), steps=(1,)), "as another job does"),
        (outcome_of(a_job(1, 2), a_job(2, 1)), "made the versions [2, 1]"),
        (outcome_of(a_job(1, 1)), "made the versions [1], and there are [1, 2]"),
    ],
)
def test_versions_that_contradict_the_jobs(outcome, said):
    findings = Findings()
    check_versions(outcome, findings)
    assert said in " ".join(findings.sentences)


def test_a_digest_that_differs_from_the_uninterrupted_run():
    findings = Findings()
    check_digests(outcome_of(), ["digest1", "other"], findings)
    [sentence] = findings.sentences
    assert "Version 2" in sentence and "other" in sentence


def test_a_damaged_checkpoint(tmp_path):
    checkpoint = write_checkpoint(tmp_path, LearnerState({"a": torch.zeros(3)}), {}, {})
    outcome = ModelOutcome(MODEL.id, (), (Version(1, checkpoint.digest, 1.0),))
    check_checkpoints(outcome, tmp_path, findings := Findings())
    assert findings == Findings()
    with (checkpoint.path / OPTIMIZER).open("ab") as file:
        file.write(b"\0")
    check_checkpoints(outcome, tmp_path, findings)
    [sentence] = findings.sentences
    assert OPTIMIZER in sentence


@pytest.mark.parametrize(
    ("rollout", "said"),
    [
        (Rollout(MODEL, 9.0, 9.5, 3, "digest3"), "doesn't have"),
        (Rollout(MODEL, 9.0, 9.5, 2, "digest1"), "doesn't have"),
        (Rollout(MODEL, 99.0, 99.5, 1, "digest1"), "when version 2 had been there"),
    ],
)
def test_a_rollout_from_the_wrong_version(rollout, said):
    findings = Findings()
    check_rollouts([rollout], [outcome_of()], findings)
    [sentence] = findings.sentences
    assert said in sentence


def test_a_rollout_from_an_older_version_than_the_one_before():
    findings = Findings()
    rollouts = [Rollout(MODEL, 9.6, 9.9, 1, "digest1"), Rollout(MODEL, 9.0, 9.5, 2, "digest2")]
    check_rollouts(rollouts, [outcome_of()], findings)
    [sentence] = findings.sentences
    assert "after version 2 had answered" in sentence
