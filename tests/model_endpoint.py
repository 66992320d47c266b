"""A stand-in for a service's model endpoints: scripted answers in all four protocols, whole or streamed.

The answer repeats the last message and carries token ids as Tandem's endpoint does, so a test can tell answers apart.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
from contextlib import contextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from waiting import wait_until

PROMPT_IDS = [1, 2, 3]
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


class Endpoint:
    """What the endpoint does next, and what it was asked."""

    def __init__(self):
        self.url = ""
        self.answers = []
        """Responses to send instead, first one first."""
        self.requests = []
        self.break_off = False
        """End the next stream in its middle."""
        self.may_continue = threading.Event()
        """A stream waits for it after its first event."""
        self.may_continue.set()
        self.zip_answers = False

    async def answer(self, request):
        body = json.loads(await request.body())
        self.requests.append(body)
        if self.answers:
            return self.answers.pop(0)
        kind = request.url.path.rpartition("/")[2]
        kind = "chat" if request.url.path.endswith("/chat/completions") else kind
        whole, events = ANSWERS[kind](body)
        if body.get("stream"):
            return StreamingResponse(self._stream(events), media_type="text/event-stream")
        if self.zip_answers:
            packed = gzip.compress(json.dumps(whole).encode())
            return Response(packed, headers={"content-encoding": "gzip", "content-type": "application/json"})
        return JSONResponse(whole)

    async def _stream(self, events):
        for number, event in enumerate(events):
            if number == len(events) // 2 and self.break_off:
                return
            yield event
            while not self.may_continue.is_set():
                await asyncio.sleep(0.01)


@contextmanager
def running(endpoint):
    paths = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
    app = Starlette(routes=[Route(path, endpoint.answer, methods=["POST"]) for path in paths])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    endpoint.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    yield endpoint
    server.should_exit = True
    thread.join()


def error(status):
    return JSONResponse({"error": {"message": "no"}}, status)


def _sse(*payloads, named=False):
    return [
        (f"event: {payload['type']}\n" if named else "")
        + f"data: {payload if isinstance(payload, str) else json.dumps(payload)}\n\n"
        for payload in payloads
    ]


def _said(body):
    messages = body["messages"]
    content = messages[-1]["content"]
    return content if isinstance(content, str) else content[0].get("text", "")


def _chat(body):
    text = _said(body)
    head = {"id": "c", "created": 1, "model": body["model"]}
    extra = {"policy_version": 4, "sampled_with": {}}
    tool = {"name": "add", "arguments": '{"a": 1}'}
    calls = [{"id": "call_1", "type": "function", "function": tool}] if body.get("tools") else None
    reason = "tool_calls" if calls else "stop"
    logprobs = [{"token": f"token_id:{i}", "logprob": -0.5, "bytes": [i], "top_logprobs": []} for i in (7, 8)]
    message = {"role": "assistant", "content": text} | ({"tool_calls": calls} if calls else {})
    choice = {
        "index": 0,
        "finish_reason": reason,
        "message": message,
        "token_ids": [7, 8],
        "prompt_token_ids": PROMPT_IDS,
        "logprobs": {"content": logprobs},
        **extra,
    }
    whole = {**head, "object": "chat.completion", "choices": [choice], "usage": USAGE, "prompt_token_ids": PROMPT_IDS}
    half = len(text) // 2

    def chunk(delta, **rest):
        piece = {"index": 0, "delta": delta, "finish_reason": None, "logprobs": None, **extra, **rest}
        return {**head, "object": "chat.completion.chunk", "choices": [piece]}

    pieces = [
        chunk({"role": "assistant", "content": ""}) | {"prompt_token_ids": PROMPT_IDS},
        chunk({"content": text[:half]}, token_ids=[7], logprobs={"content": logprobs[:1]}),
        chunk({"content": text[half:]}, token_ids=[8], logprobs={"content": logprobs[1:]}),
    ]
    if calls:
        opening = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "add", "arguments": ""}}
        pieces.append(chunk({"tool_calls": [opening]}))
        pieces += [chunk({"tool_calls": [{"index": 0, "function": {"arguments": part}}]}) for part in ('{"a"', ": 1}")]
    pieces.append(chunk({}, finish_reason=reason))
    pieces.append({**head, "object": "chat.completion.chunk", "choices": [], "usage": USAGE})
    return whole, _sse(*pieces, "[DONE]")


def _completion(body):
    head = {"id": "t", "created": 1, "model": body["model"], "object": "text_completion"}
    text = body["prompt"]

    def choice(text, tokens, reason, **extra):
        logprobs = {"tokens": [f"token_id:{i}" for i in tokens], "token_logprobs": [-1.0] * len(tokens)}
        rest = {"policy_version": 4, **extra}
        return {
            "index": 0,
            "text": text,
            "finish_reason": reason,
            "token_ids": tokens,
            "logprobs": logprobs,
            **rest,
        }

    whole = {**head, "choices": [choice(text, [7, 8], "stop", prompt_token_ids=PROMPT_IDS)], "usage": USAGE}
    pieces = [
        {**head, "choices": [choice(text[:1], [7], None, prompt_token_ids=PROMPT_IDS)]},
        {**head, "choices": [choice(text[1:], [8], "stop")]},
        {**head, "choices": [], "usage": USAGE},
    ]
    return whole, _sse(*pieces, "[DONE]")


def _responses(body):
    text = body["input"]
    content = [{"type": "output_text", "text": text, "annotations": []}]
    item = {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": content}
    tokens = [{"token_id": 7, "logprob": -0.5}, {"token_id": 8, "logprob": -0.5}]
    whole = {
        "id": "r",
        "object": "response",
        "created_at": 1,
        "model": body["model"],
        "status": "completed",
        "output": [item],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "policy_version": 4,
        "token_generations": [{"prompt_token_ids": PROMPT_IDS, "output_indices": [0], "output_tokens": tokens}],
    }
    created = {
        "type": "response.created",
        "sequence_number": 0,
        "response": {**whole, "output": [], "status": "queued"},
    }
    delta = {
        "type": "response.output_text.delta",
        "sequence_number": 1,
        "item_id": "m",
        "output_index": 0,
        "content_index": 0,
        "delta": text,
        "logprobs": [],
    }
    ended = {"type": "response.completed", "sequence_number": 2, "response": whole}
    return whole, _sse(created, delta, ended, named=True)


def _messages(body):
    text = _said(body)
    tokens = {"token_ids": [7, 8], "logprobs": [-0.5, -0.25], "sampled_with": {}}
    start = {"id": "m", "type": "message", "role": "assistant", "model": body["model"], "policy_version": 4}
    start |= {"prompt_token_ids": PROMPT_IDS}
    use = {"type": "tool_use", "id": "u", "name": "add", "input": {"a": 1}}
    ended = {"stop_reason": "tool_use", "stop_sequence": None}
    usage = {"input_tokens": 3, "output_tokens": 2}
    whole = {**start, "content": [{"type": "text", "text": text}, use], **ended, "usage": usage, **tokens}
    block = {"type": "content_block_delta", "index": 0}
    input_delta = {"type": "content_block_delta", "index": 1}
    pieces = [
        {"type": "message_start", "message": {**start, "content": [], "stop_reason": None, "stop_sequence": None}
         | {"usage": {"input_tokens": 3, "output_tokens": 0}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *({**block, "delta": {"type": "text_delta", "text": part}} for part in (text[:1], text[1:])),
        {"type": "content_block_stop", "index": 0},
        {"type": "content_block_start", "index": 1, "content_block": {**use, "input": {}}},
        *({**input_delta, "delta": {"type": "input_json_delta", "partial_json": p}} for p in ('{"a"', ": 1}")),
        {"type": "content_block_stop", "index": 1},
        {"type": "message_delta", "delta": ended, "usage": {"output_tokens": 2}, **tokens},
        {"type": "message_stop"},
    ]  # fmt: skip
    return whole, _sse(*pieces, named=True)


ANSWERS = {"chat": _chat, "completions": _completion, "responses": _responses, "messages": _messages}
