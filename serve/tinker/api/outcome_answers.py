"""Answers to requests for results, by the API's routes and by the proxies' gateway."""

from __future__ import annotations

from fastapi.responses import JSONResponse, Response

from tandem.cluster.calls.call import PROTOBUF
from tandem.serve.tinker.api.errors import try_again
from tandem.serve.tinker.store.outcomes import Announced, Answered, Failed, Outcome, Waiting

MAX_INLINE_BYTES = 4 << 20
"""A larger result is announced first, so that the client makes room for it."""


def outcome_answer(outcome: Outcome, request_id: str, allow_metadata_only: bool, accept: str) -> Response:
    """Return the answer to a request for a result.

    Args:
        allow_metadata_only: the client takes the size of a large result first.
        accept: the media types that it takes.
    """
    match outcome:
        case Waiting():
            return JSONResponse(try_again(request_id, outcome.state, outcome.reason), 408)
        case Failed():
            return JSONResponse({"error": outcome.message, "category": outcome.category})
        case Announced():
            return _announcement(outcome.num_bytes)
        case Answered():
            return _answer(outcome, most_bytes(allow_metadata_only), accept)


def most_bytes(allow_metadata_only: bool) -> int | None:
    """Return the size above which a result is announced first; None: never."""
    return MAX_INLINE_BYTES if allow_metadata_only else None


def _announcement(num_bytes: int) -> Response:
    return JSONResponse({"status": "complete_metadata", "response_payload_size": num_bytes})


def _answer(outcome: Answered, max_bytes: int | None, accept: str) -> Response:
    if max_bytes is not None and len(outcome.content) > max_bytes:
        return _announcement(len(outcome.content))
    if outcome.media_type == PROTOBUF and PROTOBUF not in accept:
        from tandem.serve.tinker.api.json_datums import output_as_json

        return JSONResponse(output_as_json(outcome.content))
    return Response(outcome.content, media_type=outcome.media_type)
