"""Server-sent events of a streamed answer, put together to the answer that the same request gets without a stream.

One function per protocol. Fields that these protocols don't have, like the sampled token ids, are kept: lists of a
choice's tokens are joined, anything else is taken as it came last.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Answer = dict[str, Any]
DONE = "[DONE]"

JOINED_LISTS = ("token_ids", "tokens", "token_logprobs", "text_offset", "compact_logprobs", "routed_experts")
"""Fields of a streamed choice that have one item per token of the piece."""
SPANS = ("policy_token_spans", "prompt_policy_token_spans")
JOINED_TEXTS = ("content", "refusal", "reasoning", "reasoning_content")


class IncompleteStreamError(ValueError):
    """The stream ended before its last event, or reports an error."""


def assembled(endpoint: str, body: bytes) -> Answer:
    """Return the whole answer of a stream. Raise IncompleteStreamError.

    `endpoint` is the protocol: chat_completions, completions, responses or messages.
    """
    return _ASSEMBLE[endpoint](_events(body))


def _events(body: bytes) -> Iterator[Answer | str]:
    """Yield the data of each event: an object, or [DONE]."""
    lines: list[str] = []
    for line in [*body.decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n").split("\n"), ""]:
        if line.startswith("data:"):
            lines.append(line.removeprefix("data:").removeprefix(" "))
        elif not line and lines:
            data = "\n".join(lines)
            lines = []
            if data == DONE:
                yield DONE
                continue
            try:
                value = json.loads(data)
            except ValueError:
                continue  # a keep-alive, or the piece of an event at which the stream broke off
            if isinstance(value, dict):
                yield value


def _chunks(events: Iterable[Answer | str]) -> Iterator[Answer]:
    """Yield the chunks of a stream that ends in [DONE]."""
    for event in events:
        if isinstance(event, str):
            return
        if event.get("error"):
            raise IncompleteStreamError(f"the stream reports an error: {event['error']}")
        yield event
    raise IncompleteStreamError("the stream has no [DONE]")


def _chat(events: Iterable[Answer | str]) -> Answer:
    return _of_choices(events, "chat.completion", _join_chat_piece)


def _completion(events: Iterable[Answer | str]) -> Answer:
    return _of_choices(events, "text_completion", _join_text_piece)


def _of_choices(events: Iterable[Answer | str], kind: str, join: Callable[[Answer, Answer], None]) -> Answer:
    answer: Answer = {}
    choices: dict[int, Answer] = {}
    for chunk in _chunks(events):
        _update(answer, chunk, leave={"choices"})
        for piece in chunk.get("choices") or ():
            choice = choices.setdefault(piece["index"], {"index": piece["index"], "finish_reason": None})
            join(choice, piece)
    if not choices or any(choice["finish_reason"] is None for choice in choices.values()):
        raise IncompleteStreamError("a choice of the stream has no end")
    answer["object"] = kind
    answer["choices"] = [choices[index] for index in sorted(choices)]
    if answer.get("prompt_token_ids") is not None:
        for choice in answer["choices"]:
            choice.setdefault("prompt_token_ids", answer["prompt_token_ids"])
    return answer


def _join_chat_piece(choice: Answer, piece: Answer) -> None:
    message = choice.setdefault("message", {"role": "assistant", "content": None})
    for name, value in (piece.get("delta") or {}).items():
        if value is None:
            continue
        if name in JOINED_TEXTS:
            message[name] = (message.get(name) or "") + value
        elif name == "tool_calls":
            _join_calls(message.setdefault("tool_calls", []), value)
        elif name == "function_call":
            _join_call(message.setdefault("function_call", {"name": "", "arguments": ""}), value)
        else:
            message[name] = value
    _join_tokens(choice, piece)


def _join_text_piece(choice: Answer, piece: Answer) -> None:
    choice["text"] = choice.get("text", "") + (piece.get("text") or "")
    _join_tokens(choice, piece)


def _join_calls(calls: list[Answer], pieces: Iterable[Answer]) -> None:
    for piece in pieces:
        while len(calls) <= piece["index"]:
            calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
        call = calls[piece["index"]]
        _update(call, piece, leave={"index", "function"})
        _join_call(call["function"], piece.get("function") or {})


def _join_call(call: Answer, piece: Answer) -> None:
    for name in ("name", "arguments"):
        call[name] += piece.get(name) or ""


def _join_tokens(choice: Answer, piece: Answer) -> None:
    """Join the fields of a piece that describe its tokens."""
    for name, value in piece.items():
        if value is None or name in ("index", "delta", "text"):
            continue
        if name in JOINED_LISTS:
            choice[name] = [*choice.get(name, ()), *value]
        elif name in SPANS:
            _join_spans(choice.setdefault(name, []), value)
        elif name in ("logprobs", "compact_top_logprobs") and isinstance(value, dict):
            whole = choice.setdefault(name, {})
            for key, items in value.items():
                whole[key] = [*(whole.get(key) or ()), *items] if isinstance(items, list) else whole.get(key, items)
        else:
            choice[name] = value


def _join_spans(spans: list[Answer], more: Iterable[Answer]) -> None:
    """Append spans of tokens; one that continues the last with the same version lengthens it."""
    for span in more:
        before = spans[-1] if spans else {}
        if before and {**before, "start_token": 0, "end_token": 0} == {**span, "start_token": 0, "end_token": 0}:
            before["end_token"] = span["end_token"]
        else:
            spans.append(dict(span))


def _response(events: Iterable[Answer | str]) -> Answer:
    for event in events:
        if isinstance(event, dict) and event.get("type") in ("response.completed", "response.incomplete"):
            answer: Answer = event["response"]
            return answer
    raise IncompleteStreamError("the stream has no response.completed")


def _message(events: Iterable[Answer | str]) -> Answer:
    message: Answer = {}
    blocks: dict[int, Answer] = {}
    texts: dict[int, str] = {}  # of the JSON of tools' inputs
    for event in events:
        if isinstance(event, str):
            continue
        match event.get("type"):
            case "message_start":
                message = dict(event["message"])
            case "content_block_start":
                blocks[event["index"]] = dict(event["content_block"])
            case "content_block_delta":
                _join_block(blocks[event["index"]], event["delta"], texts, event["index"])
            case "message_delta":
                _update(message, event["delta"])
                message["usage"] = {**(message.get("usage") or {}), **(event.get("usage") or {})}
                _update(message, event, leave={"type", "delta", "usage"})
            case "message_stop" if message:
                for index, text in texts.items():
                    blocks[index]["input"] = _input(text)
                return {**message, "content": [blocks[index] for index in sorted(blocks)]}
            case "error":
                raise IncompleteStreamError(f"the stream reports an error: {event.get('error')}")
    raise IncompleteStreamError("the stream has no message_stop")


def _input(text: str) -> Any:
    """Return the input of a tool; a model may write one that isn't JSON, and the sampled tokens count all the same."""
    try:
        return json.loads(text or "{}")
    except ValueError:
        return {}


def _join_block(block: Answer, delta: Answer, texts: dict[int, str], index: int) -> None:
    match delta.get("type"):
        case "input_json_delta":
            texts[index] = texts.get(index, "") + delta["partial_json"]
        case "citations_delta":
            block["citations"] = [*(block.get("citations") or ()), delta["citation"]]
        case _:
            for name, value in delta.items():
                if isinstance(value, str) and name != "type":
                    block[name] = (block.get(name) or "") + value


def _update(whole: Answer, part: Answer, leave: Iterable[str] = ()) -> None:
    """Take over all that a part says, except the fields to leave."""
    whole.update({name: value for name, value in part.items() if value is not None and name not in leave})


_ASSEMBLE: dict[str, Callable[[Iterable[Answer | str]], Answer]] = {
    "chat_completions": _chat,
    "completions": _completion,
    "responses": _response,
    "messages": _message,
}
