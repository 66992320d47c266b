"""Many requests for results at once: held without threads, and woken together."""

import asyncio
import threading

import httpx

from tandem.serve.tinker.api import result_watch

NUM = 300


def test_hundreds_of_requests_wait_without_keeping_others_waiting(
    run, post, app, key, configure, executor, monkeypatch
):
    configure("tinker", max_waiting_calls=NUM)
    for seq in range(1, 6):
        post("optim_step", model_id=run, seq_id=seq)
    looks = []
    applied = result_watch.applied_seqs
    monkeypatch.setattr(result_watch, "applied_seqs", lambda *of: looks.append(1) or applied(*of))

    async def ask():
        transport = httpx.ASGITransport(app)
        headers = {"X-API-Key": f"tml-{key}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://tandem", headers=headers) as client:

            async def result(seq):
                return await client.post("/api/v1/retrieve_future", json={"request_id": f"call/{run}/{seq}"})

            waiting = [asyncio.create_task(result(1 + index % 5)) for index in range(NUM)]
            while len(app.state.tinker.results._waiting) < NUM:
                await asyncio.sleep(0.01)
            num_threads, num_looks = threading.active_count(), len(looks)
            assert (await client.get("/api/v1/healthz")).status_code == 200
            executor.start()
            answers = await asyncio.gather(*waiting)
            return num_threads, num_looks, [answer.status_code for answer in answers]

    num_threads, num_looks, statuses = asyncio.run(ask())
    assert statuses == [200] * NUM
    assert num_threads < 100
    assert len(looks) - num_looks < 100
