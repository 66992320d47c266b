"""The last events of a stream that fails after its start, in the form of its protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import to_json

from tandem.cluster.engine.requests.protocols import RESPONSES, speaks_anthropic
from tandem.cluster.engine.requests.responses.answers import error_event
from tandem.serve.api.anthropic_errors import anthropic_error


def error_events(path: str, error: Mapping[str, Any], num_sent: int) -> bytes:
    """Return the events for an error of the service; the protocol's clients raise on them.

    Args:
        num_sent: the events before them.
    """
    if path == RESPONSES:
        return error_event(num_sent, error["error"]["message"], error["error"]["code"])
    if speaks_anthropic(path):
        return b"event: error\ndata: " + to_json(anthropic_error(500, error)) + b"\n\n"
    return b"data: " + to_json(error) + b"\n\ndata: [DONE]\n\n"
