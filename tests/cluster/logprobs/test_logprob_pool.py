"""The pool, with functions as scorers: assignment of chunks, takeover, and disagreement."""

import threading

import pytest
import torch

from tandem.cluster.config import LogprobsConfig
from tandem.cluster.errors import LeaseLostError, StageError
from tandem.cluster.logprobs.pool import LogprobPool, ScoreReport, engine_work
from tandem.rl.packing import PackedSequence


def row(number: int, num_tokens: int = 4) -> PackedSequence:
    """Return a row whose true logprobs are all `-number`. Its last two tokens are trained."""
    zeros = torch.zeros(num_tokens, dtype=torch.int64)
    floats = torch.zeros(num_tokens)
    trained = torch.arange(num_tokens) >= num_tokens - 2
    return PackedSequence(zeros + number, torch.arange(num_tokens), zeros, zeros, trained, floats, floats, floats)


def truth(rows):
    return [-row.token_ids.float() for row in rows]


class Scorer:
    """Returns the true logprobs plus `error`, and records its rows. It calls `then`, which may wait or raise."""

    def __init__(self, error=0.0, then=lambda: None):
        self.error, self.then, self.log, self.timeout_s = error, then, [], 0.0

    def __call__(self, rows, timeout_s):
        self.log += [int(row.token_ids[0]) for row in rows]
        self.timeout_s = timeout_s
        self.then()
        return [result + self.error for result in truth(rows)]


def score(rows, learners=(), engines=(), deadline_s=60.0, on_wait=lambda: None, **settings):
    settings = {"chunk_tokens": 4, "takeover_s": 1000, **settings}
    return LogprobPool(LogprobsConfig(**settings), 1e-3, deadline_s).score(rows, learners, engines, on_wait)


def assert_true(logprobs, rows, atol=0.0):
    for found, wanted in zip(logprobs, truth(rows), strict=True):
        torch.testing.assert_close(found, wanted, atol=atol, rtol=0)


def scorers_together(*errors, num_chunks):
    """Return scorers that start each of their first `num_chunks` chunks together."""
    barrier = threading.Barrier(len(errors), timeout=60)

    def scorer(error):
        scorer = Scorer(error, then=lambda: len(scorer.log) <= num_chunks and barrier.wait())
        return scorer

    return [scorer(error) for error in errors]


def test_both_kinds_share_the_rows_and_are_compared_on_a_sample():
    rows = [row(number) for number in range(20)]
    learner, engine = scorers_together(0.0, 5e-4, num_chunks=5)
    logprobs, report = score(rows, [learner], [engine])
    assert_true(logprobs, rows, atol=6e-4)
    # One chunk of twenty is in the sample, which both score first.
    assert learner.log[0] == engine.log[0] == 0
    assert sorted(learner.log + engine.log) == sorted([0, *range(20)])
    assert min(len(learner.log), len(engine.log)) >= 5
    assert logprobs[0].tolist() == [0, 0, 0, 0]  # the learner's results
    assert report.learner_tokens == 4 * len(learner.log) and report.engine_tokens == 4 * len(engine.log)
    metrics = report.metrics()
    assert metrics["logprobs/engine_learner_abs_diff_mean"] == pytest.approx(5e-4)
    assert metrics["logprobs/engine_learner_abs_diff_max"] == pytest.approx(5e-4)
    assert metrics["logprobs/learner_share"] + metrics["logprobs/engine_share"] == 1
    assert 0 < metrics["logprobs/seconds"] < 60


def test_rows_are_chunked_by_tokens():
    chunks = []

    def engine(rows, timeout_s):
        chunks.append([row.num_tokens for row in rows])
        return truth(rows)

    score([row(n, num_tokens) for n, num_tokens in enumerate([4, 4, 9, 2, 2, 2, 2, *[10] * 9])], (), [engine],
          chunk_tokens=8)  # fmt: skip
    assert chunks == [[4, 4], [9], [2, 2, 2, 2], *[[10]] * 9]


def group_row(prompt: int, completion: int, completions: int) -> PackedSequence:
    """Return a row with a prompt and its completions. All tokens are 0."""
    segments = torch.tensor([0] * prompt + [k for k in range(1, completions + 1) for _ in range(completion)])
    positions = torch.cat([torch.arange(prompt), *[torch.arange(prompt, prompt + completion)] * completions])
    zeros, floats = torch.zeros_like(segments), torch.zeros(len(segments))
    return PackedSequence(zeros, positions, segments, zeros, segments > 0, floats, floats, floats)


def test_an_engine_computes_a_shared_prompt_for_each_completion():
    # Packed: 6 + 3 * 2 = 12 tokens. Unpacked: 3 * (6 + 2) = 24.
    assert engine_work([group_row(6, 2, 3)]) == 2.0
    assert engine_work([group_row(6, 2, 3), row(0, 12)]) == (24 + 12) / (12 + 12)


@pytest.mark.parametrize(("prompt", "mode", "asked"), [(6, "auto", True), (7, "auto", False), (7, "shared", True)])
def test_by_default_an_engine_helps_only_if_it_repeats_few_prompts(prompt, mode, asked):
    learner, engine = Scorer(), Scorer()
    score([group_row(prompt, 2, 3)] * 8, [learner], [engine], mode=mode)
    assert bool(engine.log) is asked
    assert learner.log


def test_few_rows_are_still_spread_over_the_scorers():
    learners = scorers_together(0.0, 0.0, num_chunks=1)
    score([row(number) for number in range(8)], learners, chunk_tokens=10_000)
    assert sum(len(learner.log) for learner in learners) == 8
    assert all(learner.log for learner in learners)


def test_a_disagreement_is_redone_by_learners():
    rows = [row(number) for number in range(12)]
    engine_is_ahead = threading.Event()
    engine = Scorer(error=0.5, then=lambda: len(engine.log) > 4 and engine_is_ahead.set())
    learner = Scorer(then=lambda: engine_is_ahead.wait(60))
    logprobs, report = score(rows, [learner], [engine])
    assert_true(logprobs, rows)
    assert sorted(learner.log) == list(range(12))
    assert report.num_discarded >= 4 * 4
    assert report.metrics()["logprobs/engine_share"] == 0
    assert report.metrics()["logprobs/engine_learner_abs_diff_max"] == pytest.approx(0.5)


def test_engines_that_disagree_do_not_inherit_from_learners_that_die():
    def die():
        if len(learner.log) > 1:
            raise RuntimeError("learner lost")

    learner, engine = Scorer(then=die), Scorer(error=0.5)
    with pytest.raises(StageError, match="learner lost"):
        score([row(number) for number in range(4)], [learner], [engine])


def test_a_slow_scorers_chunk_is_taken_over_and_its_late_answer_ignored():
    release, begun = threading.Event(), threading.Event()
    stuck = Scorer(error=7.0, then=lambda: begun.set() or release.wait(60))
    quick = Scorer(then=lambda: begun.wait(60))
    rows = [row(number) for number in range(6)]
    logprobs, report = score(rows, [stuck, quick], takeover_s=0.2)
    release.set()
    assert len(stuck.log) == 1
    assert sorted(quick.log) == list(range(6))
    assert quick.log[-1] == stuck.log[0]  # taken over last, when it was overdue
    assert_true(logprobs, rows)
    assert report.seconds >= 0.2


def test_a_dead_scorers_chunk_is_taken_over_at_once():
    begun = threading.Event()

    def die():
        begun.set()
        raise RuntimeError("gone")

    dead, alive = Scorer(then=die), Scorer(then=lambda: begun.wait(60))
    rows = [row(number) for number in range(6)]
    logprobs, report = score(rows, [alive], [dead])
    assert len(dead.log) == 1
    assert_true(logprobs, rows)
    assert "logprobs/engine_learner_abs_diff_mean" not in report.metrics()
    assert report.metrics()["logprobs/learner_share"] == 1


@pytest.mark.parametrize("wrong", [torch.zeros(3), torch.full((4,), torch.nan), torch.full((4,), -torch.inf)])
def test_impossible_logprobs_count_as_a_failure(wrong):
    rows = [row(number) for number in range(3)]
    logprobs, _ = score(rows, [Scorer()], [lambda rows, timeout_s: [wrong] * len(rows)])
    assert_true(logprobs, rows)


def test_learner_mode_asks_no_engine():
    engine = Scorer()
    _, report = score([row(1)], [Scorer()], [engine], mode="learner")
    assert engine.log == [] and report.engine_tokens == 0


def test_engine_mode_leaves_learners_the_sample():
    rows = [row(number) for number in range(10)]
    learner, engine = Scorer(), Scorer()
    _, report = score(rows, [learner], [engine], mode="engine")
    assert learner.log == [0]
    assert sorted(engine.log) == list(range(10))
    assert report.num_compared == 2
    score(rows, [learner], [engine], mode="engine", sample_fraction=0)
    assert learner.log == [0]


def test_engine_mode_falls_back_to_learners():
    def die():
        if len(engine.log) > 3:
            raise RuntimeError("engine lost")

    rows = [row(number) for number in range(10)]
    learner, engine = Scorer(), Scorer(then=die)
    logprobs, _ = score(rows, [learner], [engine], mode="engine")
    assert_true(logprobs, rows)
    assert len(set(learner.log)) == 7 + 1  # the rows that the engine left, and the sample


def test_when_all_have_failed_the_first_cause_is_reported():
    def scorer(error):
        def fail():
            raise error

        return Scorer(then=fail)

    with pytest.raises(StageError, match="out of order") as error:
        score([row(1), row(2)], [scorer(RuntimeError("out of order"))])
    assert error.value.stage == "score" and error.value.retryable
    unfit = StageError("score", "the adapter doesn't fit", "Look.")
    with pytest.raises(StageError, match="doesn't fit") as error:
        score([row(1)], [scorer(unfit)], [scorer(unfit)])
    assert not error.value.retryable


def test_the_deadline_ends_the_wait():
    release, ended = threading.Event(), threading.Event()
    stuck = Scorer(then=lambda: (release.wait(300), ended.set()))
    with pytest.raises(StageError, match=r"deadlines\.score_s") as error:
        score([row(1), row(2)], [stuck], deadline_s=0.3)
    assert error.value.retryable and not ended.is_set()
    release.set()
    assert stuck.timeout_s <= 0.3


def test_an_exception_of_on_wait_ends_the_scoring():
    release = threading.Event()

    def on_wait():
        raise LeaseLostError("taken over")

    with pytest.raises(LeaseLostError):
        score([row(1)], [Scorer(then=lambda: release.wait(10))], on_wait=on_wait)
    release.set()


def test_reports_add_up():
    total = ScoreReport(8, 2, 1.0, 4, 0.4, 0.3) + ScoreReport(2, 8, 2.0, 1, 0.1, 0.1)
    assert total.metrics() == {
        "logprobs/seconds": 3.0,
        "logprobs/learner_share": 0.5,
        "logprobs/engine_share": 0.5,
        "logprobs/engine_learner_abs_diff_mean": pytest.approx(0.1),
        "logprobs/engine_learner_abs_diff_max": 0.3,
    }
