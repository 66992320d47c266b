"""vLLM's own OpenAI application in this process, built on our engine and called without a port.

So tools, logprobs, streaming and token ids are vLLM's. Importing this module imports no vLLM.
"""

from __future__ import annotations

import asyncio
import json
import logging
from argparse import Namespace
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from fastapi import FastAPI
    from vllm.v1.engine.async_llm import AsyncLLM

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]
Headers = list[tuple[str, str]]
ResponseStart = tuple[int, Headers]

# Only these client headers are forwarded to vLLM: others would let a client choose a data-parallel rank, a session or
# a scheduling priority in the shared engine.
FORWARDED_HEADERS = frozenset({"accept", "content-type", "x-request-id"})
# Responses may be re-framed or rewritten, so these would be wrong.
FRAMING_HEADERS = frozenset({"content-length", "transfer-encoding"})


def parse_arguments(argv: Sequence[str]) -> Namespace:
    """Parse arguments of `vllm serve`. Raises ValueError with vLLM's message for a wrong one."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.entrypoints.launchers.launcher import validate_api_server_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class RaisingParser(FlexibleArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise ValueError(message)  # argparse would end the process

    try:
        args: Namespace = make_arg_parser(RaisingParser()).parse_args(list(argv))  # type: ignore[no-untyped-call]
        validate_parsed_serve_args(args)
        validate_api_server_args(args)  # type: ignore[no-untyped-call]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"vLLM doesn't accept the engine's arguments: {error}") from error
    return args


async def build_openai_app(llm: AsyncLLM, args: Namespace) -> FastAPI:
    """Return the application that `vllm serve` would run, on this engine and without an API key."""
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state
    from vllm.entrypoints.launchers.app import build_app

    tasks = await llm.get_supported_tasks()
    app = build_app(args, tasks, llm.model_config)
    await init_app_state(llm, app.state, args, tasks)
    app.state.server = Namespace(should_exit=False)  # vLLM sets it when the engine core dies
    return app


async def call_app(
    app: ASGIApp, method: str, path: str, headers: Iterable[tuple[str, str]], body: bytes
) -> AsyncGenerator[ResponseStart | bytes]:
    """Run one request on an ASGI application: yield (status, headers), then the chunks of the body.

    If the consumer stops early (closes the generator or is cancelled), the application sees a disconnected client and
    ends by itself. It isn't cancelled: vLLM wouldn't notice and would generate to the end.
    """
    messages: asyncio.Queue[Message | None] = asyncio.Queue()
    requests = iter([{"type": "http.request", "body": body, "more_body": False}])
    disconnected = asyncio.Event()

    async def receive() -> Message:
        if (request := next(requests, None)) is not None:
            return request
        await disconnected.wait()
        return {"type": "http.disconnect"}

    task = asyncio.create_task(app(_scope(method, path, headers), receive, messages.put))
    task.add_done_callback(lambda _: messages.put_nowait(None))
    task.add_done_callback(_log_failure)
    try:
        while (message := await messages.get()) is not None:
            if message["type"] == "http.response.start":
                yield message["status"], _response_headers(message.get("headers", ()))
            elif message["type"] == "http.response.body":
                if message.get("body"):
                    yield bytes(message["body"])
                if not message.get("more_body"):
                    return
        await task  # it ended before its response did, so this raises the cause
    finally:
        disconnected.set()


def error_app(status: int, type: str, message: str, param: str | None = None) -> ASGIApp:
    """Return an application that answers with an error in the format of OpenAI and vLLM."""
    error = {"error": {"message": message, "type": type, "param": param, "code": status}}
    headers = [(b"content-type", b"application/json")] + [(b"retry-after", b"1")] * (status == 503)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": json.dumps(error).encode(), "more_body": False})

    return app


def _scope(method: str, path: str, headers: Iterable[tuple[str, str]]) -> Scope:
    forwarded = [(name.lower(), value) for name, value in headers if name.lower() in FORWARDED_HEADERS]
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in forwarded],
        "client": ("127.0.0.1", 0),
        "server": ("engine", 0),
        "state": {},
    }


def _response_headers(raw: Iterable[tuple[bytes, bytes]]) -> Headers:
    decoded = ((name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in raw)
    return [(name, value) for name, value in decoded if name not in FRAMING_HEADERS]


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("The OpenAI application failed on a request.", exc_info=error)
