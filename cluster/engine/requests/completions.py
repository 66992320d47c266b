"""The engine's ASGI application: completions under a policy version, from a request's bytes to its answer's.

A body is parsed once. The request is checked, completed by what training needs, answered by vLLM's handlers, and the
answer says which version made it. Importing this module imports no vLLM.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import unquote

from tandem.cluster.engine.metrics.usage import Charged, charging
from tandem.cluster.engine.requests.chat.answers import Annotator
from tandem.cluster.engine.requests.chat.fields import fill_in_defaults
from tandem.cluster.engine.requests.headers import CHARGED_HEADER, DIGEST_HEADER, MODEL_HEADER, VERSION_HEADER
from tandem.cluster.engine.requests.messages.answers import MessagesAnnotator
from tandem.cluster.engine.requests.messages.fields import checked_count, checked_message
from tandem.cluster.engine.requests.openai_app import Message, Receive, Scope, Send, error_app, forwarded_scope
from tandem.cluster.engine.requests.protocols import CHAT, COMPLETIONS, COUNT_TOKENS, MESSAGES, RESPONSES
from tandem.cluster.engine.requests.refusals import with_places
from tandem.cluster.engine.requests.request_checks import BadRequestError, policy_request
from tandem.cluster.engine.requests.responses.answers import ResponsesAnnotator
from tandem.cluster.engine.requests.responses.fields import checked_response
from tandem.cluster.engine.requests.sampling import as_chat
from tandem.cluster.engine.requests.vllm_routes import ANNOTATOR, REQUEST, ROUTES
from tandem.cluster.engine.versions.adapter_names import adapter_name
from tandem.rl.sampling_marks import sampled_with

Serve = Callable[[str, Scope, Receive, Send], Coroutine[Any, Any, None]]

PREPARED: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    CHAT: partial(fill_in_defaults, is_chat=True),
    COMPLETIONS: partial(fill_in_defaults, is_chat=False),
    RESPONSES: checked_response,
    MESSAGES: checked_message,
    COUNT_TOKENS: checked_count,
}
ANNOTATORS: dict[str, type[Annotator]] = {
    RESPONSES: ResponsesAnnotator,
    MESSAGES: MessagesAnnotator,
    COUNT_TOKENS: MessagesAnnotator,
}


@dataclass(frozen=True)
class Pinned:
    """The version that a request names, as the API has pinned it."""

    digest: str
    step: int
    requested_name: str
    charged: Charged

    @classmethod
    def of(cls, headers: Mapping[bytes, bytes]) -> Pinned:
        """Read the headers that the API sends. Raises KeyError or ValueError."""
        digest, step, name = (headers[key.encode()].decode() for key in (DIGEST_HEADER, VERSION_HEADER, MODEL_HEADER))
        charged = headers.get(CHARGED_HEADER.encode(), b"///").decode()  # a proxy of the previous release sends none
        return cls(digest, int(step), unquote(name), Charged.of_header(charged, int(step)))


class Completions:
    """Answers OpenAI requests under the policy versions that their headers pin.

    Errors have OpenAI's format: 400 with the place for a bad request, and those of `serve`, which answers the checked
    request under the version of a digest.
    """

    def __init__(self, serve: Serve):
        self._serve = serve
        self.num_open = 0
        """Requests that aren't answered yet."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.num_open += 1
        try:
            await self._answer(scope, receive, send)
        finally:
            self.num_open -= 1

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"]
        if (method, path) not in ROUTES:
            app = error_app(404, "NotFoundError", f"The engine has no route {method} {path}.")
            return await app(scope, receive, send)
        headers = dict(scope["headers"])
        pinned, body = Pinned.of(headers), await read_whole(receive)
        if body is None:
            return None
        name, kind = adapter_name(pinned.digest), ANNOTATORS.get(path, Annotator)
        try:
            request = PREPARED[path](policy_request(body, name)) | _own_id(path, headers)
        except BadRequestError as error:
            annotator = kind(pinned.requested_name, name, pinned.step, {})
            app = error_app(400, "BadRequestError", str(error), error.param)
        else:
            annotator = kind(pinned.requested_name, name, pinned.step, sampled_with(as_chat(request, path)))
            app = with_places(partial(self._serve, pinned.digest), path, request)
            scope = {**forwarded_scope(scope), REQUEST: request, ANNOTATOR: annotator}
        with charging(pinned.charged):
            await app(scope, receive, AnnotatedSend(annotator, send))


class AnnotatedSend:
    """Annotates errors and server-sent events on their way out; whole responses are annotated when they are made."""

    def __init__(self, annotator: Annotator, send: Send):
        self._annotator, self._send = annotator, send
        self._streams = False
        self._error: Message | None = None
        self._content = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = dict(message.get("headers", ()))
            self._streams = headers.get(b"content-type", b"").startswith(b"text/event-stream")
            if message["status"] >= 400:
                self._error = message
                return
        elif self._error is not None:
            self._content += message.get("body", b"")
            if message.get("more_body"):
                return
            message = await self._start_error()
        elif self._streams and message.get("body"):
            message = {**message, "body": self._annotator.events(message["body"])}
        await self._send(message)

    async def _start_error(self) -> Message:
        assert self._error is not None
        content = self._annotator.body(self._content)
        kept = [(name, value) for name, value in self._error.get("headers", ()) if name.lower() != b"content-length"]
        headers = [*kept, (b"content-length", str(len(content)).encode())]
        await self._send({**self._error, "headers": headers})
        return {"type": "http.response.body", "body": content, "more_body": False}


def _own_id(path: str, headers: Mapping[bytes, bytes]) -> dict[str, str]:
    """Return the field that names a response, and its generation in logs, after the request; the others' name it."""
    id = headers.get(b"x-request-id")
    return {"request_id": f"resp_{id.decode()}"} if path == RESPONSES and id else {}


async def read_whole(receive: Receive) -> bytes | None:
    """Return the whole body, or None if the client disconnects first."""
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return parts[0] if len(parts) == 1 else b"".join(parts)
