"""The logprobs that a job computes before its first step, and the events and metrics about them."""

import pytest
import torch
from coordinator_fakes import TOKENIZER, Base, RecordingLearners, RecordingStore, make_coordinator, make_job, trajectory
from transformers import AutoTokenizer

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.errors import StageError
from tandem.rl.config import TrainingConfig

LEVEL = {"digest-before": -2.0, "digest-reference": -5.0}  # the logprob of every token under a version


class ScoringLearners(RecordingLearners):
    """Learners that also score. They record the scored versions and the rows of every step."""

    def __init__(self, failure=None):
        super().__init__()
        self.failure, self.rows, self.stopped = failure, [], False

    def scorers(self, digest, chunk_size):
        self.log.append(("score", digest, chunk_size))

        def score(rows, timeout_s):
            if self.failure:
                raise self.failure
            return [torch.full((row.num_tokens,), LEVEL[digest]) for row in rows]

        return [score]

    def step(self, sequences, *args):
        self.rows += sequences
        return super().step(sequences, *args)

    def stop(self):
        self.stopped = True

    @property
    def scored(self):
        return [entry[1] for entry in self.log if entry[0] == "score"]


def engine(error=0.0):
    def score(sequences, digest, timeout_s):
        return [[float("nan")] + [LEVEL[digest] + error] * (len(tokens) - 1) for tokens in sequences]

    return score


@pytest.fixture(scope="module")
def base():
    return Base(AutoTokenizer.from_pretrained(TOKENIZER))


@pytest.fixture
def run(tmp_path, base):
    def run(learners=None, engines=(), groups=None, reference=None, version=None, **config):
        artifacts, learners = Artifacts(str(tmp_path)), learners or ScoringLearners()
        job = make_job(artifacts, groups, config=TrainingConfig(**config), reference_digest=reference)
        store = RecordingStore(job)
        make_coordinator(base, store, artifacts, learners, engines).run_next()
        return store, learners

    return run


def trained(row, logprobs):
    return set(logprobs[row.loss_mask].tolist())


def test_nothing_is_scored_by_default(run):
    store, learners = run(engines=[engine()])
    assert store.order[-1] == "complete" and learners.scored == []
    [row] = learners.rows
    assert row.old_logprobs is None and row.ref_logprobs is None
    assert not [name for name in store.log[1][1] if name.startswith("logprobs/")]


def test_old_logprobs_are_those_of_the_starting_version(run):
    store, learners = run(precalculate_logprobs=True, logprob_calculation_chunk_size=77)
    assert learners.log[:2] == [("load", "digest-before"), ("score", "digest-before", 77)]
    [row] = learners.rows
    assert trained(row, row.old_logprobs) == {-2.0}
    assert trained(row, row.sampling_logprobs) == {-1.0}  # unchanged
    assert row.ref_logprobs is None
    assert store.log[1][1]["logprobs/learner_share"] == 1


def test_reference_logprobs_are_those_of_the_reference(run):
    _, learners = run(kl_penalty_coef=0.1, reference="digest-reference")
    [row] = learners.rows
    assert learners.scored == ["digest-reference"]
    assert trained(row, row.ref_logprobs) == {-5.0} and row.old_logprobs is None


def test_a_version_that_is_both_is_scored_once(run):
    _, learners = run(kl_penalty_coef=0.1, reference="digest-before", precalculate_logprobs=True)
    [row] = learners.rows
    assert learners.scored == ["digest-before"]
    assert trained(row, row.ref_logprobs) == trained(row, row.old_logprobs) == {-2.0}


def test_two_versions_are_scored_one_after_the_other(run):
    _, learners = run(kl_penalty_coef=0.1, reference="digest-reference", precalculate_logprobs=True)
    [row] = learners.rows
    assert learners.scored == ["digest-before", "digest-reference"]
    assert (trained(row, row.ref_logprobs), trained(row, row.old_logprobs)) == ({-5.0}, {-2.0})


def test_the_first_gradient_step_reports_how_learners_and_engine_agreed(run):
    store, _ = run(engines=[engine(1e-4)], precalculate_logprobs=True, packed_sequence_length=16)
    (_, _), (_, first), (_, second), _ = store.log
    assert first["logprobs/engine_learner_abs_diff_max"] == pytest.approx(1e-4, rel=1e-2)
    assert 0 < first["logprobs/engine_share"] < 1
    assert "logprobs/engine_share" not in second
    assert "logprobs_rescored" not in store.order


def test_a_disagreement_is_an_event_of_the_job(run):
    store, learners = run(engines=[engine(0.5)], precalculate_logprobs=True)
    assert store.order == ["training_started", "logprobs_rescored", "gradient_step", "complete"]
    assert store.log[1][1]["logprobs/engine_learner_abs_diff_max"] == pytest.approx(0.5)
    assert store.log[1][1]["tolerance"] == 1e-3 and store.log[1][1]["num_tokens"] > 0
    [row] = learners.rows
    assert trained(row, row.old_logprobs) == {-2.0}


def test_a_failed_scoring_stops_the_learners_and_the_job_is_retried(run):
    store, learners = run(
        ScoringLearners(StageError("score", "a learner died.", "Again.", retryable=True)), precalculate_logprobs=True
    )
    assert store.order == ["training_started", "requeue"]
    assert learners.stopped


def test_policy_lag_and_fresh_tokens(run):
    """The job starts from version 3. Earlier versions lag, and only tokens of version 3 are compared."""
    old, new = trajectory(1.0, 10, 11), trajectory(0.0, 12, 13, 14)
    groups = [{"trajectories": [old | {"initial_policy_version": 1}, new | {"initial_policy_version": 3}]}]
    store, learners = run(groups=groups)
    assert store.log[0][1]["policy_lag/mean"] == 1 and store.log[0][1]["policy_lag/max"] == 2
    [row] = learners.rows
    assert sorted(row.token_ids[row.is_fresh & row.loss_mask].tolist()) == [12, 13, 14]
    _, learners = run(groups=groups, packed_sequence_length=16)
    assert [row.is_fresh is None for row in learners.rows] == [False, True]  # set for the first step only
    store, learners = run()
    assert "policy_lag/mean" not in store.log[0][1] and not learners.rows[0].is_fresh.any()


def test_pictures_of_the_tensors_are_kept_when_asked_for(run, tmp_path):
    run(packed_sequence_length=16)
    assert not list(tmp_path.rglob("*.png"))
    store, _ = run(packed_sequence_length=16, plot_tensors=True, precalculate_logprobs=True)
    assert store.order[-1] == "complete"
    pictures = list(tmp_path.rglob("*.png"))
    assert len(pictures) == 2 and all(p.read_bytes().startswith(b"\x89PNG") for p in pictures)
