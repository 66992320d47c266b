"""Samples kept by an engine replica: started once, held, dropped in time and beyond the limits, and handed back."""

import asyncio

import pytest

from tandem.cluster.engine.samples import futures as module
from tandem.cluster.engine.samples.futures import (
    Announced,
    ClientLeftError,
    Failed,
    HandedBackError,
    SampleFutures,
    SampleGoneError,
    SampleLimits,
    SamplesFullError,
    Waiting,
)
from tandem.cluster.engine.samples.sample_body import SampleError

KEY = ("session", 1)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Work:
    """A sample that a test lets end."""

    def __init__(self, result=b"answer"):
        self.num_started, self.result = 0, result
        self.may_end = asyncio.Event()
        self.was_cancelled = False

    async def __call__(self, progress):
        self.num_started += 1
        self.progress = progress
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


def done(result=b"answer"):
    work = Work(result)
    work.may_end.set()
    return work


def test_a_sample_is_held_until_it_is_done_and_can_be_fetched_again():
    async def scenario():
        futures, work = SampleFutures(), Work()
        futures.start(KEY, b"d", 2, work)
        assert futures.num_waiting == 2
        fetching = asyncio.create_task(futures.outcome(KEY, 60))
        await asyncio.sleep(0)
        work.may_end.set()
        assert await fetching == b"answer"
        assert await futures.outcome(KEY, 0) == b"answer"
        assert futures.num_waiting == 0
        await futures.close()

    asyncio.run(scenario())


def test_a_request_that_is_sent_again_is_computed_once():
    async def scenario():
        futures, work = SampleFutures(), Work()
        for _ in range(3):
            futures.start(KEY, b"d", 1, work)
            await asyncio.sleep(0)
        with pytest.raises(SampleError, match="another request"):
            futures.start(KEY, b"other", 1, work)
        futures.start(("other session", 1), b"d", 1, work)
        await asyncio.sleep(0)
        assert work.num_started == 2
        await futures.close()

    asyncio.run(scenario())


def test_while_it_waits_the_client_learns_why():
    async def scenario():
        futures, work = SampleFutures(), Work()
        futures.start(KEY, b"d", 1, work)
        await asyncio.sleep(0)
        work.progress.is_paused, work.progress.reason = True, "asleep"
        assert await futures.outcome(KEY, 0) == Waiting(True, "asleep")
        await futures.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("error", "expected"),
    [(SampleError("too hot"), Failed("too hot", "user")), (KeyError("secret"), "server")],
)
def test_a_failure_is_an_outcome(error, expected):
    async def scenario():
        futures = SampleFutures()
        futures.start(KEY, b"d", 1, done(error))
        outcome = await futures.outcome(KEY, 60)
        assert outcome == expected or (outcome.category == expected and "secret" not in outcome.message)
        await futures.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("error", [HandedBackError("died"), asyncio.CancelledError()], ids=["handed back", "cancelled"])
def test_a_sample_that_nobody_computes_any_more_is_gone_and_can_be_started_again(error):
    """Its client sends it again, instead of waiting without end."""

    async def scenario():
        futures = SampleFutures()
        futures.start(KEY, b"d", 1, done(error))
        with pytest.raises(SampleGoneError):
            await futures.outcome(KEY, 60)
        futures.start(KEY, b"d", 1, done())
        assert await futures.outcome(KEY, 60) == b"answer"
        await futures.close()

    asyncio.run(scenario())


def test_a_stopped_engine_hands_back_what_waits():
    async def scenario():
        futures, work = SampleFutures(), Work()
        futures.start(KEY, b"d", 1, work)
        never_begun = Work()
        fetching = asyncio.create_task(futures.outcome(KEY, 60))
        await asyncio.sleep(0)
        futures.start(("session", 2), b"d", 1, never_begun)
        assert futures.num_awaited == 2
        await futures.close()
        with pytest.raises(SampleGoneError):
            await fetching
        assert work.was_cancelled and not never_begun.num_started
        await asyncio.sleep(0)
        assert futures.num_waiting == 0 and futures.num_awaited == 0

    asyncio.run(scenario())


def test_beyond_the_limit_new_samples_are_refused_but_a_single_large_one_isnt():
    async def scenario():
        futures, work = SampleFutures(SampleLimits(max_waiting=4)), Work()
        futures.start(KEY, b"d", 3, work)
        futures.start(("session", 2), b"d", 1, work)
        with pytest.raises(SamplesFullError):
            futures.start(("session", 3), b"d", 1, work)
        futures.start(KEY, b"d", 3, work)  # known: it takes no place
        work.may_end.set()
        await futures.outcome(("session", 2), 60)
        await futures.outcome(KEY, 60)
        futures.start(("session", 3), b"d", 9, work)
        await futures.close()

    asyncio.run(scenario())


def test_answers_are_dropped_after_the_grace_time_and_abandoned_samples_are_aborted():
    async def scenario():
        clock = Clock()
        futures = SampleFutures(SampleLimits(abandoned_s=40, ttl_s=100, grace_s=10), clock)
        abandoned, held = Work(), Work()
        futures.start(KEY, b"d", 1, done())
        futures.start(("session", 2), b"d", 1, abandoned)
        futures.start(("session", 3), b"d", 1, held)
        futures.start(("session", 4), b"d", 1, done())
        await futures.outcome(KEY, 60)
        holding = asyncio.create_task(futures.outcome(("session", 3), 60))
        await asyncio.sleep(0)
        clock.now = 9
        futures.sweep()
        assert await futures.outcome(KEY, 0) == b"answer"  # its time begins again
        clock.now = 18
        futures.sweep()
        assert await futures.outcome(KEY, 0) == b"answer"
        clock.now = 40
        futures.sweep()
        await asyncio.sleep(0)
        assert not abandoned.was_cancelled
        clock.now = 41
        futures.sweep()
        await asyncio.sleep(0)
        assert abandoned.was_cancelled and not held.was_cancelled
        clock.now = 100
        futures.sweep()
        assert await futures.outcome(("session", 4), 0) == b"answer"  # it is done, so it costs only memory
        for key in (KEY, ("session", 2)):
            with pytest.raises(SampleGoneError):
                await futures.outcome(key, 0)
        held.may_end.set()
        assert await holding == b"answer"
        assert futures.num_waiting == 0
        await futures.close()

    asyncio.run(scenario())


def test_an_answer_that_was_only_announced_is_kept_until_its_client_has_room_for_it():
    async def scenario():
        clock = Clock()
        futures = SampleFutures(SampleLimits(ttl_s=100, grace_s=10), clock)
        futures.start(KEY, b"d", 1, done(bytes(50)))
        assert await futures.outcome(KEY, 60, max_bytes=49) == Announced(50)
        clock.now = 99
        futures.sweep()
        assert await futures.outcome(KEY, 60, max_bytes=50) == bytes(50)
        await futures.close()

    asyncio.run(scenario())


def test_the_answers_that_are_kept_have_a_limit():
    async def scenario():
        futures = SampleFutures(SampleLimits(max_kept_bytes=3 * (1000 + module.ENTRY_BYTES)))
        for seq in range(3):
            futures.start(("session", seq), b"d", 1, done(bytes(1000)))
            await asyncio.sleep(0.001)
        await futures.outcome(("session", 1), 0)  # fetched, so it goes first
        for seq in (3, 4):
            futures.start(("session", seq), b"d", 1, done(bytes(1000)))
            await asyncio.sleep(0.001)
        assert futures.kept_bytes == 3 * (1000 + module.ENTRY_BYTES)
        for seq in (0, 1):
            with pytest.raises(SampleGoneError):
                await futures.outcome(("session", seq), 0)
        for seq in (2, 3, 4):
            assert await futures.outcome(("session", seq), 0) == bytes(1000)
        await futures.close()

    asyncio.run(scenario())


def test_a_sample_that_is_cancelled_is_aborted_and_gone():
    async def scenario():
        futures, work = SampleFutures(), Work()
        futures.start(KEY, b"d", 1, work)
        holding = asyncio.create_task(futures.outcome(KEY, 60))
        await asyncio.sleep(0)
        futures.cancel(KEY)
        futures.cancel(KEY)
        with pytest.raises(SampleGoneError):
            await holding
        assert work.was_cancelled and futures.num_waiting == 0
        await futures.close()

    asyncio.run(scenario())


def test_a_sample_is_aborted_for_its_last_request_alone_and_not_once_its_client_asked_for_it():
    async def scenario():
        futures, work = SampleFutures(), Work()
        futures.start(KEY, b"d", 1, work, "first")
        await asyncio.sleep(0)
        futures.start(KEY, b"d", 1, work, "sent again")
        futures.cancel(KEY, "first")
        assert isinstance(await futures.outcome(KEY, 0), Waiting)
        futures.cancel(KEY, "sent again")
        assert isinstance(await futures.outcome(KEY, 0), Waiting)
        futures.start(KEY, b"d", 1, work, "once more")
        futures.cancel(KEY, "once more")
        with pytest.raises(SampleGoneError):
            await futures.outcome(KEY, 0)
        await asyncio.sleep(0)
        assert work.was_cancelled
        await futures.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("ends_with", [HandedBackError("aborted"), b"late"])
def test_the_late_end_of_a_cancelled_sample_leaves_its_successor_alone(ends_with):
    async def scenario():
        futures, is_ending, successor = SampleFutures(), asyncio.Event(), Work()

        async def stubborn(progress):
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                await is_ending.wait()
            if isinstance(ends_with, Exception):
                raise ends_with
            return ends_with

        futures.start(KEY, b"d", 1, stubborn)
        await asyncio.sleep(0)
        futures.cancel(KEY)
        futures.start(KEY, b"d", 1, successor)
        is_ending.set()
        await asyncio.sleep(0.01)
        assert futures.kept_bytes == 0 and futures.num_waiting == 1
        successor.may_end.set()
        assert await futures.outcome(KEY, 60) == b"answer"
        await futures.close()

    asyncio.run(scenario())


def test_a_client_that_leaves_while_it_is_held_has_not_fetched_the_answer():
    async def scenario():
        clock = Clock()
        futures, work, has_left = SampleFutures(SampleLimits(ttl_s=100, grace_s=10), clock), Work(), asyncio.Event()
        futures.start(KEY, b"d", 1, work)
        holding = asyncio.create_task(futures.outcome(KEY, 60, has_left.wait))
        await asyncio.sleep(0.01)
        assert not holding.done() and futures.num_awaited == 1
        has_left.set()
        with pytest.raises(ClientLeftError):
            await holding
        work.may_end.set()
        await asyncio.sleep(0.01)
        clock.now = 50
        futures.sweep()
        assert await futures.outcome(KEY, 60, has_left.wait) == b"answer"
        await futures.close()

    asyncio.run(scenario())


def test_the_sweeper_runs_by_itself(monkeypatch):
    monkeypatch.setattr(module, "SWEEP_S", 0.01)

    async def scenario():
        futures = SampleFutures(SampleLimits(abandoned_s=0.02))
        work = Work()
        futures.start(KEY, b"d", 1, work)
        async with asyncio.timeout(10):
            while not work.was_cancelled:
                await asyncio.sleep(0.01)
        await futures.close()

    asyncio.run(scenario())
