"""The clock of a job's phases: exclusive, without gaps, and heard by listeners. The clock's time is the test's."""

import threading

import pytest
from coordinator_fakes import make_job

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.jobs import phases
from tandem.cluster.jobs.phases import PhaseClock
from tandem.cluster.learners.turns import Turns


class Time:
    """Seconds that only the test lets pass."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def passes(self, seconds):
        self.now += seconds


class Heard(list):
    def phase_ended(self, job, phase):
        self.append((phase.name, phase.seconds))


@pytest.fixture
def time():
    return Time()


@pytest.fixture
def heard():
    return Heard()


@pytest.fixture
def clock(time, heard, tmp_path):
    return PhaseClock(make_job(Artifacts(str(tmp_path))), [heard], clock=time, wall_clock=lambda: 5000.0)


def shown(clock):
    return [(span.name, span.seconds) for span in clock.spans()]


def test_phases_are_exclusive_and_the_rest_is_idle(clock, time, heard):
    with clock:
        time.passes(1)
        with clock.phase("score"):
            time.passes(2)
            with clock.phase("record"):
                time.passes(4)
            time.passes(8)
        time.passes(16)
    assert shown(clock) == [("idle", 1), ("score", 2), ("record", 4), ("score", 8), ("idle", 16)]
    assert heard == [("record", 4), ("score", 10), ("idle", 17)]
    spans = clock.spans()
    assert [span.reason for span in spans] == ["after the claim", None, None, None, "after score"]
    assert [(span.began_at, span.ended_at) for span in spans] == [
        (5000, 5001),
        (5001, 5003),
        (5003, 5007),
        (5007, 5015),
        (5015, 5031),
    ]


def test_a_phase_that_runs_is_shown_up_to_now_and_one_that_fails_has_ended(clock, time, heard):
    with pytest.raises(ValueError, match="diverged"), clock:
        with clock.phase("load"):
            time.passes(3)
            assert shown(clock) == [("load", 3)]
            time.passes(1)
            assert shown(clock) == [("load", 4)]
        with clock.phase("step"), clock.phase("record"):
            time.passes(2)
            raise ValueError("diverged")
    assert heard == [("load", 4), ("record", 2), ("step", 0), ("idle", 0)]
    time.passes(9)
    assert shown(clock) == [("load", 4), ("record", 2)]


def test_learner_seconds_are_those_of_the_turn_times_the_learners(clock, time):
    turns = Turns(time)
    mine = turns.join(10, lambda has_learners: clock.has_learners(3 if has_learners else 0))
    other = turns.join(10)
    with clock:
        with clock.phase("wait_turn"):
            time.passes(5)
            mine.hold(lambda: None)
        with clock.phase("start_learners"):
            time.passes(7)
        with clock.phase("step"):
            time.passes(2)
        with clock.phase("record"):
            time.passes(1)
        mine.give_back()
        other.hold(lambda: None)
        with clock.phase("checkpoint"):
            time.passes(4)
    used = {span.name: span.learner_seconds for span in clock.spans()}
    assert used == {"wait_turn": 0, "start_learners": 0, "step": 6, "record": 3, "checkpoint": 0}


def test_scoring_without_the_turn_is_waiting(clock, time, heard):
    with clock, clock.phase("score", without_learners="wait_turn"):
        time.passes(1)
        clock.has_learners(2)
        time.passes(3)
        clock.has_learners(0)
        time.passes(5)
    assert shown(clock) == [("wait_turn", 1), ("score", 3), ("wait_turn", 5)]
    assert sorted(heard) == [("idle", 0), ("score", 3), ("wait_turn", 6)]


def test_amounts_belong_to_the_phase_in_which_they_are_counted(clock, time):
    with clock:
        with clock.phase("prepare"):
            clock.count(cpu_seconds=40.0)
            time.passes(1)
        with clock.phase("step"):
            time.passes(1)
            clock.count(trained_tokens=700)
            clock.count(trained_tokens=300)
    prepare, step = clock.spans()
    assert step.trained_tokens == 1000 and step.cpu_seconds < 1
    assert 40 <= prepare.cpu_seconds < 41


def test_short_spans_join_the_one_before_and_many_join_their_kind(clock, time, monkeypatch):
    monkeypatch.setattr(phases, "MAX_SPANS", 4)
    with clock:
        for _ in range(10):
            with clock.phase("step"):
                time.passes(1)
                clock.count(trained_tokens=5)
            with clock.phase("record"):
                time.passes(0.5)
            with clock.phase("wait_turn"):
                time.passes(0.0001)
    spans = clock.spans()
    assert len(spans) == 4
    assert sum(span.seconds for span in spans) == pytest.approx(15.001)
    assert sum(span.trained_tokens for span in spans) == 50
    assert sum(span.seconds for span in spans if span.name == "step") == 10
    assert spans[0].ended_at - spans[0].began_at > spans[0].seconds > 1


def test_a_listener_that_fails_or_a_name_that_is_unknown_changes_no_job(clock, time, heard):
    def fail(job, phase):
        raise RuntimeError("no room for metrics")

    heard.phase_ended = fail
    with clock, clock.phase("load"):
        time.passes(1)
    with pytest.raises(ValueError, match="'lunch' is no phase"), clock.phase("lunch"):
        pass


def test_other_threads_may_look_and_count(clock, time):
    with clock, clock.phase("score"):
        others = [threading.Thread(target=clock.count, kwargs={"scored_tokens": 7}) for _ in range(8)]
        for other in others:
            other.start()
        for other in others:
            other.join()
        time.passes(1)
    (score,) = clock.spans()
    assert (score.scored_tokens, score.seconds) == (56, 1)
