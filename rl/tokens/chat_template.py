"""Render the context of a turn with the tokenizer's chat template, as OpenAI-compatible engines do."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tandem.rl.tokens.choices import NotExactError
from tandem.rl.tokens.messages import Choice, Tool
from tandem.rl.tokens.recent import Recent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]
NUM_RECENT = 16
"""Conversations whose text is kept."""


class ChatTemplate:
    """Renders messages to text.

    Some templates take content as a list of parts, or tool arguments as objects, others only as strings. The
    constructor tries which.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._rendered: Recent[str] = Recent(NUM_RECENT)
        self._reserved = frozenset(inspect.signature(tokenizer.apply_chat_template).parameters)
        parts = [{"type": "text", "text": "probe"}]
        self._takes_parts = self._renders_alike(
            [{"role": "user", "content": parts}], [{"role": "user", "content": "probe"}]
        )
        call = {"id": "probe", "type": "function", "function": {"name": "probe", "arguments": {"key": "value"}}}
        self._takes_objects = self._renders(
            [{"role": "user", "content": "probe"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
        )

    def render(self, messages: Sequence[Message], tools: list[Tool] | None, kwargs: Mapping[str, Any] | None) -> str:
        """Return the text of prepared messages, up to the start of the model's turn. Raises NotExactError."""
        try:
            given = json.dumps([messages, tools, kwargs])
        except (TypeError, ValueError):  # objects of code
            return self._render(messages, tools, kwargs)
        return self._rendered.get(given, lambda: self._render(messages, tools, kwargs))

    def _render(self, messages: Sequence[Message], tools: list[Tool] | None, kwargs: Mapping[str, Any] | None) -> str:
        try:
            conversation: list[Any] = list(messages)
            offered: list[Any] | None = tools
            text = self._tokenizer.apply_chat_template(
                conversation, tools=offered, tokenize=False, add_generation_prompt=True, **(kwargs or {})
            )
        except Exception as error:  # a template may raise anything
            raise NotExactError(
                f"the chat template can't render the messages before it ({error}); send messages that the model's "
                "template accepts"
            ) from error
        assert isinstance(text, str), "tokenize=False gives text"
        return text

    def reserved(self, kwargs: Iterable[str]) -> str | None:
        """Return the first argument that belongs to the renderer instead of the template, if any."""
        return next((name for name in kwargs if name in self._reserved), None)

    def prepare(self, item: Message | Choice) -> dict[str, Any]:
        """Return a message or choice in the template's format. Raises NotExactError for content that isn't text."""
        message = item.message if isinstance(item, Choice) else item
        prepared: dict[str, Any] = {key: value for key, value in message.items() if value is not None}
        prepared["content"] = self._content(prepared.get("content", ""), prepared["role"])
        if calls := prepared.pop("tool_calls", None):
            prepared["tool_calls"] = [self._tool_call(call) for call in calls]
        return prepared

    def _content(self, content: str | list[dict[str, Any]], role: str) -> str | list[dict[str, Any]]:
        if isinstance(content, str):
            return content
        texts = text_parts(content)
        # Engines join the parts of a tool's result, even if the template takes parts.
        if self._takes_parts and role != "tool":
            return [{"type": "text", "text": text} for text in texts]
        return "\n".join(texts)

    def _tool_call(self, call: dict[str, Any]) -> dict[str, Any]:
        if not self._takes_objects or "function" not in call:
            return call
        try:
            arguments = json.loads(call["function"]["arguments"] or "{}")
        except json.JSONDecodeError:
            arguments = {}  # as in vLLM, so that a malformed call doesn't end a conversation
        if not isinstance(arguments, dict):
            arguments = {}
        return {**call, "function": {**call["function"], "arguments": arguments}}

    def _renders_alike(self, one: list[Message], other: list[Message]) -> bool:
        try:
            return self.render(one, None, None) == self.render(other, None, None)
        except NotExactError:
            return False

    def _renders(self, messages: list[Message]) -> bool:
        try:
            self.render(messages, None, None)
        except NotExactError:
            return False
        return True


def text_parts(parts: Sequence[dict[str, Any]]) -> list[str]:
    """Return the texts of content parts. Raises NotExactError for other parts."""
    for index, part in enumerate(parts):
        if part["type"] not in ("text", "refusal"):
            raise NotExactError(f"content of type {part['type']!r} can't be trained; send text only", "content", index)
    return [part[part["type"]] for part in parts]
