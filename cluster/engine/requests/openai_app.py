"""vLLM's own OpenAI application in this process, built on our engine.

So tools, logprobs, streaming and token ids are vLLM's. Importing this module imports no vLLM.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from fastapi import FastAPI
    from vllm.v1.engine.async_llm import AsyncLLM

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]

# Only these client headers are forwarded to vLLM: others would let a client choose a data-parallel rank, a session or
# a scheduling priority in the shared engine.
FORWARDED_HEADERS = frozenset({b"accept", b"content-type", b"x-request-id"})


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


def error_app(status: int, type: str, message: str, param: str | None = None) -> ASGIApp:
    """Return an application that answers with an error in the format of OpenAI and vLLM."""
    error = {"error": {"message": message, "type": type, "param": param, "code": status}}
    content = json.dumps(error).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    headers += [(b"retry-after", b"1")] * (status == 503)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content, "more_body": False})

    return app


def forwarded_scope(scope: Scope) -> Scope:
    """Return the scope of a request with only the headers that may reach vLLM."""
    headers = [(name, value) for name, value in scope["headers"] if name in FORWARDED_HEADERS]
    return {**scope, "headers": headers}
