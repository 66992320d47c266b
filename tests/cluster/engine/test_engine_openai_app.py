"""Calling an ASGI application in-process: order, headers, errors, and clients that disconnect early."""

import asyncio
import json

import pytest

from tandem.cluster.engine.openai_app import call_app, error_app
from tandem.cluster.engine.request_checks import policy_request


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
    assert seen["headers"] == [(b"content-type", b"application/json")]  # the other headers aren't forwarded


def test_a_caller_who_leaves_early_is_a_disconnect_and_no_cancellation():
    async def scenario(leave):
        ended = asyncio.get_running_loop().create_future()

        async def app(scope, receive, send):
            try:
                await receive()
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"a", "more_body": True})
                message = await receive()
                await asyncio.sleep(0)  # clean-up in an application may await, too
                ended.set_result(message["type"])
            except BaseException as error:
                ended.set_exception(error)

        items = call_app(app, "POST", "/", [], b"")
        assert await anext(items) == (200, [])
        assert await anext(items) == b"a"
        await leave(items)
        return await asyncio.wait_for(ended, 30)

    async def close(items):
        await items.aclose()

    async def cancel(items):
        waiting = asyncio.create_task(anext(items))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})

    assert asyncio.run(scenario(close)) == "http.disconnect"
    assert asyncio.run(scenario(cancel)) == "http.disconnect"


def test_an_application_that_fails_before_it_answers_raises():
    async def app(scope, receive, send):
        raise KeyError("oops")

    with pytest.raises(KeyError, match="oops"):
        asyncio.run(collect(call_app(app, "POST", "/", [], b"")))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"a":' * 100_000,
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 9223372036854775808}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b'{"a": "\xff"}',
        rb'{"a": "\ud800"}',
    ],
    ids=lambda body: str(body[:30]),
)
def test_bodies_that_vllm_could_not_carry_to_its_core_are_refused(body):
    with pytest.raises(ValueError, match="The request body can't be read"):
        policy_request(body, "policy-x")


def test_the_model_of_a_request_is_replaced_and_nothing_else():
    body = '{"model": "a/b", "n": -9223372036854775808, "x": [null, true, 1.5, "\u00e9"]}'
    expected = {"model": "policy-x", "n": -(2**63), "x": [None, True, 1.5, "\u00e9"]}
    assert policy_request(body.encode(), "policy-x") == expected


def test_errors_have_the_shape_that_openai_clients_read():
    start, body = asyncio.run(collect(call_app(error_app(503, "Busy", "Later.", "model"), "GET", "/", [], b"")))
    assert start == (503, [("content-type", "application/json"), ("retry-after", "1")])
    assert json.loads(body) == {"error": {"message": "Later.", "type": "Busy", "param": "model", "code": 503}}
