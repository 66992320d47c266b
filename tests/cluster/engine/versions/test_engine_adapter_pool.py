"""Loading adapters once, on demand, and dropping idle ones."""

import asyncio

import pytest
from recorded_metrics import recorded

from tandem.cluster.engine.versions.adapter_pool import AdapterPool
from tandem.cluster.errors import AdapterUnavailableError, ArtifactError


class Loader:
    """Records loads and unloads. A digest that starts with x doesn't exist."""

    def __init__(self, capacity: int, is_open: bool = True):
        self.events: list[str] = []
        self.gate = asyncio.Event()
        if is_open:
            self.gate.set()
        self.pool = AdapterPool(self.load, self.unload, capacity)

    async def load(self, digest: str) -> None:
        self.events.append(f"+{digest}")
        await self.gate.wait()
        if digest.startswith("x"):
            raise ArtifactError("not there")

    async def unload(self, digest: str) -> None:
        self.events.append(f"-{digest}")
        await asyncio.sleep(0)
        self.events.append(f"-{digest} done")

    async def touch(self, *digests: str) -> None:
        for digest in digests:
            async with self.pool.use(digest):
                pass


def test_concurrent_users_of_a_version_load_it_once():
    async def scenario():
        loader = Loader(capacity=2, is_open=False)
        users = [asyncio.create_task(loader.touch("a")) for _ in range(5)]
        await asyncio.sleep(0.01)
        assert loader.pool.digests == []
        loader.gate.set()
        await asyncio.gather(*users)
        assert loader.events == ["+a"]
        assert loader.pool.digests == ["a"]

    asyncio.run(scenario())


def test_the_least_recently_used_idle_version_goes_first_and_comes_back_on_demand():
    async def scenario():
        loader = Loader(capacity=2)
        await loader.touch("a", "b", "a", "c")
        assert loader.events == ["+a", "+b", "-b", "-b done", "+c"]
        assert loader.pool.digests == ["a", "c"]
        await loader.touch("b")
        assert loader.events[5:] == ["-a", "-a done", "+b"]

    asyncio.run(scenario())


def test_a_version_in_use_is_never_dropped():
    async def scenario():
        loader = Loader(capacity=1)
        async with loader.pool.use("a"):
            await loader.touch("b", "c")
            assert loader.pool.digests == ["a", "c"]  # over capacity while two are in use at once
        await loader.touch("d")
        assert loader.pool.digests == ["d"]

    asyncio.run(scenario())


def test_a_version_asked_for_while_it_is_unloaded_waits_for_that():
    async def scenario():
        loader = Loader(capacity=1)
        await loader.touch("a")
        other = asyncio.create_task(loader.touch("b"))
        while "-a" not in loader.events:
            await asyncio.sleep(0)
        assert "-a done" not in loader.events
        await loader.touch("a")
        await other
        assert loader.events.index("-a done") < loader.events.index("+a", 1)

    asyncio.run(scenario())


def test_a_failed_load_reaches_everyone_who_waited_and_is_tried_again():
    async def scenario():
        loader = Loader(capacity=2)
        results = await asyncio.gather(loader.touch("x"), loader.touch("x"), return_exceptions=True)
        assert [type(result) for result in results] == [AdapterUnavailableError] * 2
        assert isinstance(results[0].__cause__, ArtifactError)
        with pytest.raises(AdapterUnavailableError, match="not there"):
            await loader.touch("x")
        assert loader.events == ["+x", "+x"]
        assert loader.pool.digests == []

    asyncio.run(scenario())


def test_a_waiter_that_gives_up_does_not_stop_the_load_for_others():
    async def scenario():
        loader = Loader(capacity=2, is_open=False)
        first, second = (asyncio.create_task(loader.touch("a")) for _ in range(2))
        await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.sleep(0.01)
        loader.gate.set()
        await second
        assert first.cancelled()
        assert loader.events == ["+a"]

    asyncio.run(scenario())


def test_loads_and_evictions_are_counted():
    async def scenario():
        await (loader := Loader(capacity=1)).touch("a", "b", "a")
        with pytest.raises(AdapterUnavailableError):
            await loader.touch("x")

    with recorded() as metrics:
        asyncio.run(scenario())
    assert metrics.total("tandem_engine_adapter_loads_total", outcome="loaded") == 3
    assert metrics.total("tandem_engine_adapter_loads_total", outcome="failed") == 1
    assert metrics.total("tandem_engine_adapter_evictions_total") >= 2
