"""When the learners of an engine on a CPU start: with the engine's help, without it, or at once."""

import logging

import pytest

from tandem.cluster.config import TINY, EngineConfig, LearnersConfig, TandemConfig
from tandem.serve.app import api_replica, engine_first
from tandem.serve.app.engine_first import has_room_for_all, wait_for_engine


class Started:
    """The engine's answer: it comes after some waits, or the engine fails."""

    def __init__(self, num_waits: int, error: Exception | None = None):
        self.num_waits, self.error, self.is_cancelled = num_waits, error, False

    def result(self, timeout_s: float) -> None:
        assert timeout_s > 0
        self.num_waits -= 1
        if self.num_waits >= 0:
            raise TimeoutError
        if self.error:
            raise self.error

    def cancel(self) -> None:
        self.is_cancelled = True


def test_the_learners_wait_until_the_engine_has_started():
    started = Started(num_waits=3)
    wait_for_engine(started, is_urgent=lambda: False)
    assert started.num_waits == -1


def test_a_queued_job_starts_the_learners_before_the_engine_answers():
    polls = iter([False, False, True])
    started = Started(num_waits=1000)
    wait_for_engine(started, is_urgent=lambda: next(polls))
    assert started.num_waits == 998 and started.is_cancelled


@pytest.mark.parametrize("error", [RuntimeError("the replica died"), ConnectionError("the store is away")])
def test_a_failed_engine_or_store_does_not_keep_the_learners_from_starting(error):
    started = Started(num_waits=0, error=error)
    wait_for_engine(started, is_urgent=lambda: False)
    assert started.is_cancelled

    def store_fails() -> bool:
        raise error

    wait_for_engine(Started(num_waits=1000), is_urgent=store_fails)


def test_an_engine_that_never_starts_is_logged_and_not_waited_for_without_end(monkeypatch, caplog):
    monkeypatch.setattr(engine_first, "ENGINE_FIRST_S", 0.05)
    started = Started(num_waits=10**9)
    wait_for_engine(started)
    assert started.is_cancelled
    assert "hasn't started within 0.05 s" in caplog.text


class Warmed:
    """A preparation that notes what is warmed up."""

    def __init__(self, error: Exception | None = None):
        self.asked, self.error = [], error

    def warm_up(self, base_model: str) -> None:
        self.asked.append(base_model)
        if self.error:
            raise self.error


@pytest.mark.parametrize(
    "started", [Started(0), Started(0, RuntimeError("it died")), Started(10**9)], ids=["starts", "fails", "never"]
)
def test_a_first_payload_is_prepared_for_whatever_becomes_of_the_engine(monkeypatch, started):
    monkeypatch.setattr(engine_first, "ENGINE_FIRST_S", 0.05)
    monkeypatch.setattr(api_replica, "engine_started", lambda engine: engine)
    warmed = Warmed()
    api_replica._warm_up(warmed, "team/base", started)
    assert warmed.asked == ["team/base"]


def test_a_preparation_that_does_not_start_is_logged(monkeypatch, caplog):
    monkeypatch.setattr(api_replica, "engine_started", lambda engine: engine)
    with caplog.at_level(logging.WARNING):
        api_replica._warm_up(Warmed(RuntimeError("no memory")), "team/base", Started(0))
    assert "team/base" in caplog.text and "no memory" in caplog.text


def test_learners_start_first_only_where_every_engine_has_room_too(tmp_path):
    """Two engines of 1.5 CPUs and three learners of 2, on each of two base models: 18, and 4 for the start."""
    settings = {
        "engine": EngineConfig(replicas=2, num_cpus=1.5),
        "learners": LearnersConfig(count=3, num_cpus=2),
    }
    bases = [TINY.model_copy(update={"name": name, **settings}) for name in ("a", "b")]
    config = TandemConfig(home=tmp_path, base_models=bases)
    assert has_room_for_all(config, 22)
    assert not has_room_for_all(config, 21.5)
