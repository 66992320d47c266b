"""Render the context of a turn with the tokenizer's chat template, exactly as the engine's vLLM does.

A template gets messages in vLLM's form, not as they were sent: content as parts or as a string (`content_format`),
known keys in a fixed order, tool arguments as objects, a developer message as a system message if the template doesn't
know that role.
"""

from __future__ import annotations

import inspect
import json
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tandem.rl.tokens.choices import NotExactError
from tandem.rl.tokens.content_format import takes_parts
from tandem.rl.tokens.messages import Choice, Tool
from tandem.rl.tokens.recent import Recent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Message = Mapping[str, Any]
NUM_RECENT = 16
"""Conversations whose text is kept."""
NOW = "strftime_now"
"""The function by which a template writes the current date. As an argument of a trajectory, the date of sampling."""
_UNSET = (None, "auto")
"""Template arguments that vLLM leaves out."""
_ONLY_OPENAI = frozenset({"refusal", "audio", "function_call"})
_ONLY_VLLM = frozenset({"reasoning", "tool_call_id", "tools", "task"})
_ATTRIBUTION = "x-anthropic-billing-header"
"""The first words of a line that vLLM drops from system messages, because it changes with every request."""


class ChatTemplate:
    """Renders messages to text.

    Some templates take tool arguments only as strings, which vLLM refuses; such conversations come from other engines.
    The constructor tries which.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._rendered: Recent[str] = Recent(NUM_RECENT)
        self._reserved = frozenset(inspect.signature(tokenizer.apply_chat_template).parameters)
        # Objects, unless only strings work: a template that takes neither here may be strict about ids or roles.
        self._takes_objects = self._renders_call({"key": "value"}) or not self._renders_call('{"key": "value"}')

    def render(
        self,
        messages: Sequence[Message],
        tools: list[Tool] | None,
        kwargs: Mapping[str, Any] | None,
        generation_prompt: bool = True,
    ) -> str:
        """Return the text of prepared messages, by default up to the start of the model's turn.

        Raises NotExactError.
        """
        try:
            given = json.dumps([messages, tools, kwargs, generation_prompt])
        except (TypeError, ValueError):  # objects of code
            return self._render(messages, tools, kwargs, generation_prompt)
        return self._rendered.get(given, lambda: self._render(messages, tools, kwargs, generation_prompt))

    def _render(
        self,
        messages: Sequence[Message],
        tools: list[Tool] | None,
        kwargs: Mapping[str, Any] | None,
        generation_prompt: bool = True,
    ) -> str:
        arguments = {name: value for name, value in (kwargs or {}).items() if value not in _UNSET}
        offered: list[Any] | None = None if tools is None else [_offered(tool) for tool in tools]
        try:
            template = self._template(offered)
            if (date := arguments.pop(NOW, None)) is not None or NOW in template:
                arguments[NOW] = _clock(date)
            conversation: list[Any] = _in_format(messages, template)
            text = self._tokenizer.apply_chat_template(
                conversation, tools=offered, tokenize=False, add_generation_prompt=generation_prompt, **arguments
            )
        except NotExactError:
            raise
        except Exception as error:  # a template may raise anything
            raise NotExactError(
                f"the chat template can't render the messages {'before' if generation_prompt else 'up to'} it "
                f"({error}); send messages that the model's template accepts"
            ) from error
        assert isinstance(text, str), "tokenize=False gives text"
        return text

    def _template(self, tools: list[Any] | None) -> str:
        try:
            template: str = self._tokenizer.get_chat_template(None, tools)
        except Exception as error:  # of any kind, such as that of a tokenizer of Mistral's own format
            raise NotExactError(
                f"the model has no chat template ({error}), so its prompt isn't known; sample with "
                "return_token_ids=true and keep prompt_token_ids on each choice"
            ) from error
        return template

    def reserved(self, kwargs: Iterable[str]) -> str | None:
        """Return the first argument that belongs to the renderer instead of the template, if any."""
        return next((name for name in kwargs if name in self._reserved), None)

    def prepare(self, item: Message | Choice) -> dict[str, Any]:
        """Return a message or choice as vLLM reads it, with content as a list of texts.

        Raises NotExactError for content that isn't text.
        """
        message: Message = item.message if isinstance(item, Choice) else item
        prepared: dict[str, Any] = {"role": message["role"], "content": _texts(message)}
        if message["role"] == "assistant":
            if calls := message.get("tool_calls"):
                prepared["tool_calls"] = [self._tool_call(call) for call in calls]
            if (reasoning := _reasoning(message)) is not None:
                prepared |= {"reasoning": reasoning, "reasoning_content": reasoning}
        elif message["role"] == "tool" and "tool_call_id" in message:
            prepared["tool_call_id"] = message["tool_call_id"]
        prepared |= {key: message[key] for key in ("name", "task") if isinstance(message.get(key), str)}
        if message["role"] == "developer":
            prepared["tools"] = message.get("tools")
        return prepared

    def _tool_call(self, call: dict[str, Any]) -> dict[str, Any]:
        if "function" not in call:
            return call
        function = call["function"]
        arguments = _arguments(function) if self._takes_objects else function.get("arguments", "")
        return {
            "id": call["id"],
            "function": {"arguments": arguments, "name": function["name"]},
            "type": call["type"],
        }

    def _renders_call(self, arguments: dict[str, str] | str) -> bool:
        call = {"id": "probe0000", "type": "function", "function": {"name": "probe", "arguments": arguments}}
        try:
            self._render([_probe("user"), {**_probe("assistant"), "tool_calls": [call]}], None, None)
        except NotExactError:
            return False
        return True


def text_parts(parts: Sequence[dict[str, Any]]) -> list[str]:
    """Return the texts of content parts. Raises NotExactError for other parts."""
    for index, part in enumerate(parts):
        if part["type"] not in ("text", "refusal"):
            raise NotExactError(f"content of type {part['type']!r} can't be trained; send text only", "content", index)
    return [part[part["type"]] for part in parts]


def _probe(role: str) -> dict[str, Any]:
    return {"role": role, "content": ["probe"]}


def _clock(date: Any) -> Callable[[str], str]:
    """Return the function by which a template writes the date, for a date as the trajectory gives it."""

    def strftime_now(format: str) -> str:
        if date is None:
            raise NotExactError(
                "the chat template writes the current date, and the date of sampling isn't known; sample with "
                f"return_token_ids=true and keep prompt_token_ids on each choice, or send the date as {NOW}, such as "
                "2026-11-30, in chat_template_kwargs"
            )
        try:
            return datetime.fromisoformat(date).strftime(format)
        except (TypeError, ValueError) as error:
            raise NotExactError(
                f"{reprlib.repr(date)} isn't a date; send {NOW} as a date like 2026-11-30 in chat_template_kwargs"
            ) from error

    return strftime_now


def _texts(message: Message) -> list[str]:
    content = message.get("content")
    if content is None:
        return []
    texts = [content] if isinstance(content, str) else text_parts(content)
    return list(_without_attribution(texts)) if message["role"] == "system" else texts


def _without_attribution(texts: Iterable[str]) -> Iterable[str]:
    for text in texts:
        if not text.startswith(_ATTRIBUTION):
            yield text
        elif rest := text.partition("\n")[2]:
            yield rest


def _reasoning(message: Message) -> str | None:
    """Return the reasoning that vLLM passes to the template, under its two names."""
    reasoning = message.get("reasoning")
    return message.get("reasoning_content") if reasoning is None else reasoning


def loses_reasoning(message: Message) -> bool:
    """True if vLLM drops the reasoning of an assistant's message that has it.

    vLLM reads a message as OpenAI's type or as its own, whichever knows more of its keys, and only its own knows
    reasoning. A null `tool_calls` isn't of OpenAI's type.
    """
    if _reasoning(message) is None or message.get("tool_calls", ...) is None:
        return False
    keys = message.keys() | {"reasoning"}
    return len(keys & _ONLY_OPENAI) >= len(keys & _ONLY_VLLM)


def _arguments(function: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call as vLLM does: {} if they are malformed, so that the conversation doesn't end."""
    arguments = function.get("arguments") or "{}"
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except json.JSONDecodeError:
            return {}
    return arguments if isinstance(arguments, dict) else {}


def _offered(tool: Tool) -> dict[str, Any]:
    """Return a tool as vLLM does: known keys in a fixed order, description and parameters even if null."""
    function = tool["function"]
    known: dict[str, Any] = {key: function.get(key) for key in ("name", "description", "parameters")}
    if function.get("strict") is not None:
        known["strict"] = function["strict"]
    return {"type": tool["type"], "function": known}


def _in_format(messages: Sequence[Message], template: str) -> list[dict[str, Any]]:
    """Return prepared messages as the template takes them."""
    as_parts = takes_parts(template)
    conversation = [{**message, "content": _content(message, as_parts)} for message in messages]
    if any(message["role"] == "developer" for message in messages) and not _knows_developer(template):
        return _one_system_message([_as_system(message) for message in conversation])
    return conversation


def _content(message: Message, as_parts: bool) -> str | list[dict[str, str]]:
    # vLLM joins the parts of a tool's result, even if the template takes parts.
    if as_parts and message["role"] != "tool":
        return [{"type": "text", "text": text} for text in message["content"]]
    return "\n".join(message["content"])


def _knows_developer(template: str) -> bool:
    return '"developer"' in template or "'developer'" in template


def _as_system(message: dict[str, Any]) -> dict[str, Any]:
    if message["role"] != "developer":
        return message
    return {key: value for key, value in message.items() if key != "tools"} | {"role": "system"}


def _one_system_message(conversation: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Merge the system messages into the first message, as vLLM does after it made some of developer messages."""
    systems = [message for message in conversation if message["role"] == "system"]
    if len(systems) == 1 and conversation[0]["role"] == "system":
        return conversation
    contents = [
        content if isinstance(content := message["content"], str) else "\n".join(part["text"] for part in content)
        for message in systems
    ]
    merged = {"role": "system", "content": "\n\n".join(filter(None, contents))}
    return [merged, *(message for message in conversation if message["role"] != "system")]
