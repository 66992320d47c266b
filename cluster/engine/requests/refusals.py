"""vLLM's answers to bad requests: always a 400 in OpenAI's shape that names the place in the request.

vLLM names the place of only some faults, and answers some with a 500 or a 501: a grammar that passes its checks and
fails to compile, an option that this engine doesn't have.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tandem.cluster.engine.requests.openai_app import ASGIApp, Message, Receive, Scope, Send
from tandem.cluster.engine.requests.protocols import CHAT, COMPLETIONS, COUNT_TOKENS, MESSAGES, RESPONSES

if TYPE_CHECKING:
    from fastapi import FastAPI, Request
    from fastapi.responses import JSONResponse

MAX_MESSAGE = 500
"""Characters that are kept of vLLM's message, which may quote a value of any size."""
MIN_QUOTED, MAX_QUOTED = 2, 100
"""Characters of a value that a message quotes. A single digit is in too many messages."""
_FAILED = "can't be used: the engine failed to compile it. Check its syntax, or simplify it."
_PROMPTS = {CHAT: "messages", COMPLETIONS: "prompt", RESPONSES: "input", MESSAGES: "messages", COUNT_TOKENS: "messages"}
_NAMES_IN_CHAT = {
    "max_completion_tokens": ("max_tokens",),
    "max_tokens": ("max_output_tokens",),
    "stop": ("stop_sequences",),
    "thinking_token_budget": ("thinking", "budget_tokens"),
    "reasoning_effort": ("output_config", "effort"),
}
"""Fields that vLLM names as in chat, where the request has them under another name."""
_SAYS_GRAMMAR = re.compile(r"grammar|regex|choice|schema|structur|json|internal", re.IGNORECASE)
_SAYS_TEMPLATE = re.compile(r"template|argument|object", re.IGNORECASE)
_SAYS_PART = re.compile(r"multimodal|content part|ContentPart")
_SAYS_LENGTH = re.compile(r"context length|maximum model|max_model_len|input_tokens|too long", re.IGNORECASE)


def name_places_of_invalid_fields(app: FastAPI) -> None:
    """Make vLLM's application answer a request that isn't of its type with the place of the fault."""
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse

    async def answer(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        param, message = most_likely_fault(error.errors(), error.body)
        return JSONResponse(_error(f"{param}: {message}", param), 400)

    app.add_exception_handler(RequestValidationError, answer)
    app.middleware_stack = None  # which has the handlers that were there when it was built


def most_likely_fault(errors: Sequence[Mapping[str, Any]], body: Any) -> tuple[str, str]:
    """Return the place in the body and the sentence of the fault that most of pydantic's errors are about.

    A value that may be of several types, like a message, has errors for each of them.
    """
    places = [_place(error, body) for error in errors]
    counts = Counter(places)
    best = max(counts, key=lambda place: (counts[place], -places.index(place)))
    error = errors[places.index(best)]
    message = re.sub(r"^\w+ should ", "must ", str(error["msg"]).removeprefix("Value error, "))
    return ".".join(map(str, best)) or "body", _shortened(message)


def with_places(app: ASGIApp, path: str, request: Mapping[str, Any]) -> ASGIApp:
    """Return the application with errors that name the place in `request`."""

    async def app_with_places(scope: Scope, receive: Receive, send: Send) -> None:
        held: list[Message] = []

        async def send_with_place(message: Message) -> None:
            is_error = message["type"] == "http.response.start" and message["status"] >= 400
            if not held and not is_error:
                await send(message)
                return
            held.append(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                start, *parts = held
                content = b"".join(part.get("body", b"") for part in parts)
                status, content = explained(start["status"], content, path, request)
                await send({**start, "status": status})
                await send({"type": "http.response.body", "body": content, "more_body": False})

        await app(scope, receive, send_with_place)

    return app_with_places


def explained(status: int, content: bytes, path: str, request: Mapping[str, Any]) -> tuple[int, bytes]:
    """Return status and body of an error, with the place in the request where vLLM gives none."""
    try:
        error = json.loads(content)["error"]
        message, param = str(error["message"]), error["param"]
    except (ValueError, LookupError, TypeError):
        return status, content
    grammar = _grammar(request)
    if (status == 500 and grammar is None) or status not in (400, 500, 501):
        return status, content  # not the request's fault, or it names its place
    if param is None:
        param = grammar if status == 500 else _named_place(message, path, request)
    else:
        param = _own_place(str(param).removeprefix("body."), message, path, request)
    if status == 500:
        message = f"{param} {_FAILED}"
    return 400, json.dumps(_error(_shortened(message), param)).encode()


def _error(message: str, param: str | None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "BadRequestError", "param": param, "code": 400}}


def _place(error: Mapping[str, Any], body: Any) -> tuple[str | int, ...]:
    """Return the path in the body. Pydantic's path also has names of types."""
    own = (error.get("ctx") or {}).get("error")
    if (parameter := getattr(own, "parameter", None)) is not None:
        return (str(parameter),)
    kept: list[str | int] = []
    for part in error["loc"][1:]:
        if (isinstance(body, Mapping) and part in body) or (isinstance(body, list) and part in range(len(body))):
            kept.append(part)
            body = body[part]
    if error["type"] == "missing":
        kept.append(error["loc"][-1])
    return tuple(kept)


def _own_place(param: str, message: str, path: str, request: Mapping[str, Any]) -> str:
    """Return the place that vLLM names, or the field that it comes from if the request has no such place."""
    first = param.partition(".")[0]
    if first == "logprobs" and request.get("logprobs") is True and request.get("top_logprobs"):
        return "top_logprobs"  # whose number vLLM means
    if first in request:
        return param
    if first == "max_tokens" and "max_completion_tokens" in request:
        return "max_completion_tokens"
    if (other := _NAMES_IN_CHAT.get(first)) and other[0] in request:
        return ".".join(other)
    return _named_place(message, path, request)


def _named_place(message: str, path: str, request: Mapping[str, Any]) -> str:
    """Return the place of the field that the message is about. Without any, that is the prompt."""
    grammar, prompt = _grammar(request), _PROMPTS[path]
    if grammar is not None and _SAYS_GRAMMAR.search(message):
        return grammar
    if "ToolCall" in message and (calls := _tool_calls(request)):
        return calls
    if _SAYS_PART.search(message) and (part := _other_part(request)):
        return part
    if not _SAYS_LENGTH.search(message):
        for name, value in request.items():
            if isinstance(value, Mapping) and name != prompt and (deeper := list(_deeper(value, message))):
                return ".".join([name, *deeper])
        for name in sorted(request, key=len, reverse=True):
            if name not in ("model", prompt) and _is_named(name, message):
                return ".".join([name, *_deeper(request[name], message)])
        for name, place in _NAMES_IN_CHAT.items():
            if place[0] in request and _is_named(name, message):
                return ".".join(place)
        if request.get("chat_template_kwargs") and _SAYS_TEMPLATE.search(message):
            return "chat_template_kwargs"
    return ".".join([prompt, *_deeper(request.get(prompt), message)])


def _is_named(name: str, message: str) -> bool:
    said, words = message.lower(), name.lower().replace("_", " ")
    if len(name) < 3:
        return said.startswith(f"{words} ")
    return re.search(rf"\b({re.escape(name.lower())}|{re.escape(words)})(\b|ing\b)", said) is not None


def _tool_calls(request: Mapping[str, Any]) -> str | None:
    messages = request.get("messages")
    for index, message in enumerate(messages if isinstance(messages, list) else ()):
        if isinstance(message, Mapping) and "tool_calls" in message:
            return f"messages.{index}.tool_calls"
    return None


def _other_part(request: Mapping[str, Any]) -> str | None:
    """Return the place of the first part of a message that isn't text."""
    messages = request.get("messages")
    for index, message in enumerate(messages if isinstance(messages, list) else ()):
        content = message.get("content") if isinstance(message, Mapping) else None
        for number, part in enumerate(content if isinstance(content, list) else ()):
            is_text = isinstance(part, str) or (isinstance(part, Mapping) and isinstance(part.get("text"), str))
            if not is_text:
                return f"messages.{index}.content.{number}"
    return None


def _deeper(value: Any, message: str) -> Iterator[str]:
    """Yield the way to the innermost item of a list or object that the message quotes."""
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        if isinstance(item, (Mapping, list)):
            if deeper := list(_deeper(item, message)):
                yield from (str(key), *deeper)
                return
        elif any(_quotes(message, part) for part in ((key, item) if isinstance(key, str) else (item,))):
            yield str(key)
            return


def _quotes(message: str, value: Any) -> bool:
    """Return True if the message has a short value as a word."""
    if not isinstance(value, (str, int)) or not MIN_QUOTED <= len(text := str(value)) < MAX_QUOTED:
        return False
    return re.search(rf"(?<!\w){re.escape(text)}(?!\w)", message) is not None


def _grammar(request: Mapping[str, Any]) -> str | None:
    """Return the place of the grammar that the request holds its answer to, or None."""
    outputs, format = request.get("structured_outputs"), request.get("response_format")
    if outputs is not None:
        kinds = [kind for kind, value in outputs.items() if value is not None] if isinstance(outputs, Mapping) else []
        return f"structured_outputs.{kinds[0]}" if len(kinds) == 1 else "structured_outputs"
    if format is not None:
        has_schema = isinstance(format, Mapping) and isinstance(format.get("json_schema"), Mapping)
        return "response_format.json_schema.schema" if has_schema else "response_format"
    for outer in ("text", "output_config"):  # of Responses and Messages
        config = request.get(outer)
        if isinstance(config, Mapping) and config.get("format") is not None:
            return f"{outer}.format"
    return "tools" if request.get("tools") else None


def _shortened(message: str) -> str:
    return message if len(message) <= MAX_MESSAGE else f"{message[:MAX_MESSAGE]}…"
