"""Checks of a completion request before vLLM sees it: bodies that it can't read, grammars that would take too long.

vLLM compiles the grammar of a structured output without a limit of time, on threads that all requests share. Compile
times grow up to cubically with the text, so its size is limited here: at the limits it takes about a second.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NoReturn

MAX_PATTERN = 8 << 10
"""Characters of one string in a JSON schema, such as a regular expression."""
MAX_GRAMMAR = 16 << 10
"""Characters of a grammar or regular expression."""
MAX_SCHEMA = 32 << 10
"""Characters of a JSON schema, of all choices, or of a structural tag, as JSON."""
MAX_TOOLS = 64 << 10
"""Characters of all tools, as JSON, if the request forces a call; otherwise of the schemas of strict tools."""
MAX_DEPTH = 64
"""Levels of objects and arrays in a JSON schema; vLLM has the same limit for some of its fields."""

Place = tuple[str | int, ...]


class BadRequestError(ValueError):
    """The request can't be answered. `param` is the place in its body, like `messages.0.content`."""

    def __init__(self, message: str, param: str | None = None):
        super().__init__(message, param)
        self.message, self.param = message, param

    def __str__(self) -> str:
        return self.message


def policy_request(body: bytes, name: str) -> dict[str, Any]:
    """Return the request with `model` set to `name`. Raises BadRequestError.

    Rejects anything but a JSON object, grammars that would take long to compile, and numbers and text that vLLM
    can't send to its core: it would answer with a 500 and count the request as unfinished until it restarts.
    """
    try:
        request = json.loads(body, parse_constant=_no_constant)
        if not isinstance(request, dict):
            raise ValueError("it isn't a JSON object")
        for place, reason in _unsendable(request):
            param = ".".join(map(str, place))
            raise BadRequestError(f"The request body can't be read: {param} {reason}.", param)
    except (ValueError, RecursionError) as error:
        if isinstance(error, BadRequestError):
            raise
        raise BadRequestError(f"The request body can't be read: {error}.", "body") from error
    check_grammars(request)
    return request | {"model": name}


def check_grammars(request: dict[str, Any]) -> None:
    """Raise BadRequestError for a grammar, a schema or a list of choices that would take long to compile."""
    for place, value, limit in _grammars(request):
        param = ".".join(map(str, place))
        if isinstance(value, str):
            _check_length(value, limit, param)
            continue
        for inner, text in _strings(value, place):
            _check_length(text, MAX_PATTERN, ".".join(map(str, inner))[:200])
        size = len(json.dumps(value, ensure_ascii=False))
        if size > limit:
            raise BadRequestError(f"{param} has {size} characters as JSON, more than {limit}. Shorten it.", param)


def _grammars(request: dict[str, Any]) -> Iterator[tuple[Place, Any, int]]:
    """Yield place, value and limit of each part that vLLM would compile."""
    if isinstance(outputs := request.get("structured_outputs"), dict):
        for kind, value in outputs.items():
            limit = MAX_GRAMMAR if kind in ("regex", "grammar") else MAX_SCHEMA
            yield ("structured_outputs", kind), value, limit
    if request.get("response_format") is not None:
        yield ("response_format",), request["response_format"], MAX_SCHEMA
    for outer in ("text", "output_config"):  # of Responses and Messages
        if isinstance(config := request.get(outer), dict) and config.get("format") is not None:
            yield (outer, "format"), config["format"], MAX_SCHEMA
    choice = request.get("tool_choice")
    choice = choice.get("type") if isinstance(choice, dict) and choice.get("type") in ("none", "auto") else choice
    if request.get("tools") is not None and choice not in (None, "none", "auto"):
        yield ("tools",), request["tools"], MAX_TOOLS
    elif choice != "none" and (schemas := _strict_schemas(request.get("tools"))):
        yield ("tools",), schemas, MAX_TOOLS


def _strict_schemas(tools: Any) -> dict[str, Any]:
    """Return the schemas that calls of strict tools are held to, by the tool's index, in any of the protocols."""
    found: dict[str, Any] = {}
    for index, tool in enumerate(tools if isinstance(tools, list) else ()):
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        if isinstance(function, dict) and function.get("strict"):
            found[str(index)] = function.get("parameters", function.get("input_schema"))
        if isinstance(function, dict) and (inner := _strict_schemas(function.get("tools"))):  # of a namespace
            found[str(index)] = inner
    return found


def _check_length(text: str, limit: int, param: str) -> None:
    if len(text) > limit:
        raise BadRequestError(f"{param} has {len(text)} characters, more than {limit}. Shorten it.", param)


def _strings(value: Any, place: Place, depth: int = 0) -> Iterator[tuple[Place, str]]:
    """Yield the strings of a JSON value, keys included. Raises BadRequestError for one that is nested too deeply."""
    if depth > MAX_DEPTH:
        param = ".".join(map(str, place[:2]))
        raise BadRequestError(f"{param} is nested more than {MAX_DEPTH} levels deep. Flatten it.", param)
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield place, key
            yield from _strings(item, (*place, key), depth + 1)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _strings(item, (*place, index), depth + 1)


def _unsendable(value: Any, place: Place = ()) -> Iterator[tuple[Place, str]]:
    """Yield the place of each value that can't be sent to vLLM's core, and why."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        yield place, "doesn't fit 64 bits"
    elif isinstance(value, str) and not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        yield place, "has half of a surrogate pair, which isn't text"
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from ((place, f"has a key that {reason}") for _, reason in _unsendable(key))
            yield from _unsendable(item, (*place, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            if not isinstance(item, int) or not -(2**63) <= item < 2**63:  # fast for a prompt of many tokens
                yield from _unsendable(item, (*place, index))


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} isn't JSON")
