"""Conversations of a trajectory as plain messages, for a reader such as a judge: without token ids and logprobs.

A trajectory may be a dictionary, a pydantic object or a captured rollout, with `messages_and_choices` or `exchanges`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tandem.client.capturing.rollout import Rollout

Message = dict[str, Any]
READ = ("role", "name", "tool_call_id", "reasoning", "reasoning_content", "content", "tool_calls")
"""The fields of a message that a reader needs."""


def conversations(trajectory: Any) -> list[list[Message]]:
    """Return the conversations of a trajectory, each once, in the order in which they began."""
    plain = _plain(trajectory)
    histories = [plain, *plain.get("additional_histories", ())]
    found = [
        [_message(_plain(item)) for item in history["messages_and_choices"]]
        for history in histories
        if history.get("messages_and_choices")
    ]
    for conversation in _exchanged(plain.get("exchanges") or {}):
        continued = [place for place, earlier in enumerate(found) if conversation[: len(earlier)] == earlier]
        if continued:
            found[continued[-1]] = conversation
        else:
            found.append(conversation)
    return found


def _plain(value: Any) -> dict[str, Any]:
    if isinstance(value, Rollout):
        return value.trajectory()
    if hasattr(value, "model_dump"):
        return dict(value.model_dump(mode="json"))
    if not isinstance(value, Mapping):
        raise TypeError(f"A trajectory is a dictionary, a pydantic object or a Rollout, not {type(value).__name__}.")
    return dict(value)


def _message(item: Mapping[str, Any]) -> Message:
    """Return the readable part of a message or of a choice."""
    message = item["message"] if "finish_reason" in item else item
    read = {name: message[name] for name in READ if message.get(name) not in (None, "", [])}
    if "tool_calls" in read:
        read["tool_calls"] = [call.get("function") or call.get("custom") or call for call in read["tool_calls"]]
    if isinstance(read.get("content"), list):
        read["content"] = [_part(part) for part in read["content"]]
        if len(read["content"]) == 1 and isinstance(read["content"][0], str):
            read["content"] = read["content"][0]
    return read


def _part(part: Any) -> Any:
    """Return the text of a part of a message; other parts as they are, without what is too long to read."""
    if isinstance(part, Mapping) and isinstance(part.get("text"), str):
        return part["text"]
    if isinstance(part, Mapping) and str(part.get("type", "")).startswith(("image", "input_image", "audio", "file")):
        return f"[{part['type']}]"
    return part


def _exchanged(exchanges: Mapping[str, Sequence[Any]]) -> Iterator[list[Message]]:
    """Yield the conversation of each exchange and choice, in order of time."""
    timed = [(protocol, _plain(exchange)) for protocol, found in exchanges.items() for exchange in found]
    for protocol, exchange in sorted(timed, key=lambda one: (str(one[1]["start_time"]), str(one[1]["end_time"]))):
        asked, answered = _asked(protocol, exchange["request"]), exchange["response"]
        match protocol:
            case "chat_completions":
                for choice in answered["choices"]:
                    yield [*asked, _message({"finish_reason": None, **choice})]
            case "completions":
                for choice in answered["choices"]:
                    yield [*asked, {"role": "assistant", "content": choice["text"]}]
            case "responses":
                yield [*asked, *(_item(item) for item in answered["output"])]
            case "messages":
                yield [*asked, _message({"role": "assistant", "content": answered["content"]})]


def _asked(protocol: str, request: Mapping[str, Any]) -> list[Message]:
    match protocol:
        case "completions":
            return [{"role": "user", "content": request.get("prompt")}]
        case "responses":
            given = request.get("input") or []
            items = [{"role": "user", "content": given}] if isinstance(given, str) else given
            return [*_system(request.get("instructions")), *(_item(item) for item in items)]
        case "messages":
            return [*_system(request.get("system")), *(_message(message) for message in request["messages"])]
    return [_message(message) for message in request["messages"]]


def _system(text: Any) -> list[Message]:
    return [_message({"role": "system", "content": text})] if text else []


def _item(item: Mapping[str, Any]) -> Message:
    """Return an item of the Responses protocol, which knows more kinds than messages."""
    if item.get("type", "message") == "message":
        return _message(item)
    return {name: value for name, value in item.items() if name not in ("id", "status") and value not in (None, [])}
