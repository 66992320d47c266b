"""The coordinator's side of the sleep of engines: one lease for all jobs, renewed while any of them trains."""

import threading

import pytest
from coordinator_fakes import RecordingLearners, RecordingStore, make_coordinator, make_job

from tandem.cluster.errors import EngineDeadError, StageError
from tandem.cluster.jobs.engine_sleep import EnginesAsleep


class Engines:
    """Records the calls; each call of sleep returns or raises the next answer, None for one engine by default."""

    def __init__(self, *answers):
        self.answers, self.log, self.renewed = list(answers), [], threading.Event()

    def sleep(self, holder, lease_s, timeout_s):
        self.log.append("sleep")
        if self.log.count("sleep") >= 3:
            self.renewed.set()
        answer = self.answers.pop(0) if self.answers else [None]
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def wake_up(self, holder, timeout_s):
        self.log.append("wake")
        return [None]

    def asleep(self, lease_s=60.0):
        return EnginesAsleep(self.sleep, self.wake_up, lease_s, drain_s=5, wake_s=5)

    def free_memory(self):
        self.log.append("free")


def on_wait():
    pass


def test_learners_free_their_memory_before_the_engines_wake_up():
    engines = Engines()
    with engines.asleep().during(on_wait, engines.free_memory):
        engines.log.append("train")
    assert engines.log == ["sleep", "train", "free", "wake"]


def test_engines_sleep_until_the_last_job_has_trained():
    engines = Engines()
    asleep = engines.asleep()
    with asleep.during(on_wait, engines.free_memory):
        with asleep.during(on_wait, engines.free_memory):
            pass
        engines.log.append("train")
    assert engines.log == ["sleep", "train", "free", "wake"]


def test_the_lease_is_renewed_also_after_a_call_that_failed():
    engines = Engines([None], OSError("no answer"))
    with engines.asleep(lease_s=0.03).during(on_wait, engines.free_memory):
        assert engines.renewed.wait(30)
    assert engines.log[-2:] == ["free", "wake"]
    assert engines.log.count("wake") == 1


def test_engines_wake_up_after_a_job_that_fails():
    engines = Engines()
    with pytest.raises(ValueError, match="diverged"), engines.asleep().during(on_wait, engines.free_memory):
        raise ValueError("diverged")
    assert engines.log == ["sleep", "free", "wake"]


def test_a_dead_engine_keeps_nobody_from_training():
    engines = Engines([EngineDeadError("it died"), None])
    with engines.asleep().during(on_wait, engines.free_memory):
        pass
    assert engines.log == ["sleep", "free", "wake"]


@pytest.mark.parametrize("answer", [TimeoutError(), [TimeoutError(), None]])
def test_completions_that_do_not_end_fail_the_attempt_and_the_next_one_tries_again(answer):
    engines = Engines(answer)
    asleep = engines.asleep()
    with pytest.raises(StageError) as failure, asleep.during(on_wait, engines.free_memory):
        pytest.fail("must not train beside an engine that is awake")
    assert failure.value.retryable
    with asleep.during(on_wait, engines.free_memory):
        pass
    assert engines.log == ["sleep", "sleep", "free", "wake"]


def test_learners_work_while_engines_sleep_and_publish_when_they_are_awake(base, artifacts):
    learners, engines = RecordingLearners(), Engines()
    engines.log = learners.log  # one order of both
    store = RecordingStore(make_job(artifacts))
    coordinator = make_coordinator(base, store, artifacts, learners, asleep=engines.asleep())
    coordinator.run_next()
    assert store.order == ["training_started", "gradient_step", "complete"]
    names = [entry if isinstance(entry, str) else entry[0] for entry in learners.log]
    start = ["sleep", "free_memory", "wake"]
    assert names == [*start, "sleep", "load", "step", "finish", "free_memory", "wake", "save"]
