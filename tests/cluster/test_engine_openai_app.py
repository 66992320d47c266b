"""Calling an ASGI application in-process: order, headers, errors, and clients that leave early."""

import asyncio
import json

from tandem.cluster.openai_app import call_app, error_app


async def collect(items):
    return [item async for item in items]


def test_the_application_gets_the_request_and_the_caller_the_response_in_order():
    seen = {}

    async def app(scope, receive, send):
        seen.update(scope, body=(await receive())["body"])
        headers = [(b"Content-Type", b"text/plain"), (b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 201, "headers": headers})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await send({"type": "http.response.body", "body": b"b", "more_body": False})

    headers = [("Content-Type", "application/json"), ("Authorization", "Bearer secret"), ("X-Data-Parallel-Rank", "1")]
    items = asyncio.run(collect(call_app(app, "POST", "/v1/x", headers, b"{}")))
    assert items == [(201, [("content-type", "text/plain")]), b"a", b"b"]
    assert (seen["method"], seen["path"], seen["body"]) == ("POST", "/v1/x", b"{}")
    assert seen["headers"] == [(b"content-type", b"application/json")]  # the others are not for the engine


def test_a_caller_who_leaves_early_is_a_disconnect_and_no_cancellation():
    async def scenario(leave):
        ended = asyncio.get_running_loop().create_future()

        async def app(scope, receive, send):
            try:
                await receive()
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"a", "more_body": True})
                message = await receive()
                await asyncio.sleep(0)  # an application needs the loop to clean up
                ended.set_result(message["type"])
            except BaseException as error:
                ended.set_exception(error)

        items = call_app(app, "POST", "/", [], b"")
        assert await anext(items) == (200, [])
        assert await anext(items) == b"a"
        await leave(items)
        return await asyncio.wait_for(ended, 1)

    async def close(items):
        await items.aclose()

    async def cancel(items):
        waiting = asyncio.create_task(anext(items))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})

    assert asyncio.run(scenario(close)) == "http.disconnect"
    assert asyncio.run(scenario(cancel)) == "http.disconnect"


def test_errors_have_the_shape_that_openai_clients_read():
    start, body = asyncio.run(collect(call_app(error_app(503, "Busy", "Later.", "model"), "GET", "/", [], b"")))
    assert start == (503, [("content-type", "application/json"), ("retry-after", "1")])
    assert json.loads(body) == {"error": {"message": "Later.", "type": "Busy", "param": "model", "code": 503}}
