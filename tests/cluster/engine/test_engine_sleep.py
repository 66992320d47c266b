"""An engine sleeps while somebody holds a lease, and only then; work and sleep never overlap."""

import asyncio

import pytest

from tandem.cluster.engine.sleep import EngineSleep
from tandem.cluster.errors import EngineAsleepError


class Log(list):
    """What happens to an engine, in order."""

    def sleep(self, hold_s=60.0, fault=None):
        async def fall_asleep():
            self.append("falls asleep")

        async def wake_up():
            if fault:
                raise fault
            self.append("wakes up")

        return EngineSleep(fall_asleep, wake_up, hold_s, "m")

    async def work(self, sleep, name, until=None):
        async with sleep.awake():
            self.append(f"{name} begins")
            if until:
                await until.wait()
            self.append(f"{name} ends")


async def turns():
    for _ in range(20):
        await asyncio.sleep(0)


def test_work_in_progress_ends_first_and_new_work_waits():
    async def run():
        log, end = Log(), asyncio.Event()
        sleep = log.sleep()
        first = asyncio.create_task(log.work(sleep, "first", end))
        await turns()
        leasing = asyncio.create_task(sleep.lease("trainer", 60))
        await turns()
        second = asyncio.create_task(log.work(sleep, "second"))
        await turns()
        assert log == ["first begins"]
        end.set()
        await leasing
        await turns()
        assert log == ["first begins", "first ends", "falls asleep"]
        await sleep.release("trainer")
        await asyncio.gather(first, second)
        assert log[3:] == ["wakes up", "second begins", "second ends"]
        await sleep.close()

    asyncio.run(run())


def test_it_wakes_up_when_nobody_holds_a_lease():
    async def run():
        log = Log()
        sleep = log.sleep()
        await sleep.lease("a", 60)
        await sleep.lease("b", 60)
        await sleep.lease("a", 60)  # renewed
        await sleep.release("a")
        assert log == ["falls asleep"]
        await sleep.release("b")
        await sleep.release("b")  # a repeated call does no harm
        assert log == ["falls asleep", "wakes up"]
        await sleep.close()

    asyncio.run(run())


def test_a_lease_that_is_not_renewed_ends_by_itself():
    async def run():
        log = Log()
        sleep = log.sleep()
        await sleep.lease("dead", 0.01)
        async with asyncio.timeout(30):
            await log.work(sleep, "work")
        assert log == ["falls asleep", "wakes up", "work begins", "work ends"]
        await sleep.close()

    asyncio.run(run())


def test_a_caller_that_gives_up_leaves_no_lease():
    async def run():
        log, end = Log(), asyncio.Event()
        sleep = log.sleep()
        first = asyncio.create_task(log.work(sleep, "first", end))
        await turns()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await sleep.lease("trainer", 60)
        await log.work(sleep, "second")
        end.set()
        await first
        assert "falls asleep" not in log
        await sleep.close()

    asyncio.run(run())


def test_work_that_waits_too_long_is_refused():
    async def run():
        sleep = Log().sleep(hold_s=0.01)
        await sleep.lease("trainer", 60)
        with pytest.raises(EngineAsleepError, match=r"engine\.sleep"):
            async with sleep.awake():
                pass
        await sleep.release("trainer")
        async with sleep.awake():  # the refused work isn't counted
            pass
        await sleep.lease("trainer", 60)
        await sleep.close()

    asyncio.run(run())
