"""vLLM's chat, as its layer for Anthropic's Messages can convert it.

That layer fails on tool calls whose arguments aren't a JSON object, which a model may write and a limit of tokens may
cut, turns an error in a stream into one about its own parsing, ends a last message of the assistant, and takes text
for a call where no tools are offered. Importing this module imports no vLLM.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from pydantic_core import from_json

Convert = Callable[..., Any]
Chat = Callable[..., Awaitable[Any]]
_ERROR = 'data: {"error":'


def as_the_protocol_says(convert: Convert) -> Convert:
    """Return a conversion of requests to chat that continues a last message of the assistant.

    Without tools, text that looks like a call stays text, as in chat.
    """

    def converted(request: Any, **options: Any) -> Any:
        chat = convert(request, **options)
        if not chat.tools:
            chat.tool_choice = "none"
        if request.messages and request.messages[-1].role == "assistant":
            chat.add_generation_prompt, chat.continue_final_message = False, True
        return chat

    return converted


class ChatForMessages:
    """`create_chat_completion` of vLLM's layer, with calls whose arguments are objects, whole or in a stream.

    Arguments that were cut are completed, as Anthropic's clients do with those of a stream, and any others become {}.
    """

    def __init__(self, chat: Chat):
        self._chat = chat

    async def __call__(self, *arguments: Any) -> Any:
        answer = await self._chat(*arguments)
        if isinstance(answer, AsyncGenerator):
            return _with_objects(answer)
        for choice in getattr(answer, "choices", ()):
            for call in choice.message.tool_calls:
                call.function.arguments = as_object(call.function.arguments)
        return answer


def as_object(arguments: str) -> str:
    """Return the arguments of a call as a JSON object, unchanged if they are one."""
    try:
        value = from_json(arguments, allow_partial=True)
    except ValueError:
        return "{}"
    if not isinstance(value, dict):
        return "{}"
    try:
        json.loads(arguments)
    except ValueError:
        return json.dumps(value)
    return arguments


async def _with_objects(chunks: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """Yield the chunks of a chat without arguments that aren't objects. Raises RuntimeError for an error of theirs."""
    are_objects: dict[int, bool] = {}
    async with aclosing(chunks):
        async for chunk in chunks:
            if chunk.startswith(_ERROR):
                raise RuntimeError(json.loads(chunk.removeprefix("data:"))["error"]["message"])
            yield _without_others(chunk, are_objects) if '"tool_calls":[{' in chunk else chunk


def _without_others(chunk: str, are_objects: dict[int, bool]) -> str:
    """Return a chunk without pieces of arguments that don't begin like an object. `are_objects` is by call."""
    content = json.loads(chunk.removeprefix("data:"))
    for choice in content["choices"]:
        for call in choice["delta"].get("tool_calls") or ():
            function = call.get("function") or {}
            if begin := str(function.get("arguments") or "").lstrip():
                are_objects.setdefault(call["index"], begin.startswith("{"))
            if not are_objects.get(call["index"], True):
                function["arguments"] = ""
    return f"data: {json.dumps(content)}\n\n"
