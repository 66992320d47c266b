"""The load of the comparison with vLLM's server, on servers that answer at once."""

import json
import threading

import pytest
import uvicorn
from inference_overhead import FULL, Cell, Contender, compared, measure, table
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route
from waiting import wait_until


@pytest.fixture
def contenders():
    """Three servers in one: they answer whole or as events, and keep what they were asked."""
    seen = []

    async def answer(request):
        body = await request.json()
        seen.append(body)
        if body["stream"]:
            return StreamingResponse(iter(["data: {}\n\n"] * 3 + ["data: [DONE]\n\n"]), media_type="text/event-stream")
        return JSONResponse({"choices": [{}] * body["n"]})

    app = Starlette(routes=[Route("/v1/chat/completions", answer, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    options = {"tandem": None, "vllm": None, "vllm_full": FULL}
    yield [Contender(name, port, name, list, options=more) for name, more in options.items()], seen
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize("cell", [Cell(3, 2), Cell(2, 1, True)], ids=str)
def test_each_contender_is_asked_the_same(contenders, cell):
    servers, seen = contenders
    [result] = measure(servers, [cell], 0.05, 2, lambda what: None)
    assert (result["clients"], result["n"], result["streams"]) == (cell.clients, cell.n, cell.streams)
    assert all(result[one.name]["per_s"] > 0 for one in servers)
    asked = {one.name: [body for body in seen if body["model"] == one.name] for one in servers}
    assert all(len(bodies) >= 3 * cell.clients for bodies in asked.values())
    first = {name: {key: value for key, value in bodies[0].items() if key != "model"} for name, bodies in asked.items()}
    assert first["vllm_full"] == first["tandem"] | FULL and first["vllm"] == first["tandem"]
    assert {body["n"] for body in seen} == {cell.n} and json.dumps(result)
    assert table({"cells": [result]}).row_count == 1


def test_a_ratio_is_of_the_median_rounds():
    def figures(per_s, p50_ms):
        return {"per_s": per_s, "p50_ms": p50_ms}

    turns = {
        "tandem": [figures(9.0, 12.0), figures(2.0, 70.0), figures(30.0, 3.0)],
        "vllm": [figures(10.0, 10.0)] * 3,
        "vllm_full": [figures(12.0, 8.0)] * 3,
    }
    result = compared(Cell(8), turns)
    assert (result["of_vllm"], result["of_vllm_full"], result["more_ms"]) == (0.9, 0.75, 4.0)
