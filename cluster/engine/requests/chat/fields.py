"""Adds to requests of chat and text completions what training needs: logprobs and token ids."""

from __future__ import annotations

from typing import Any

from tandem.cluster.engine.requests.field_rules import SHARED, check_fields


def fill_in_defaults(body: dict[str, Any], is_chat: bool) -> dict[str, Any]:
    """Return the request with logprobs and token ids on, unless the client set these fields. Null means unset.

    Raises BadRequestError for a field that would disturb others.
    """
    check_fields(body, SHARED, strictly=False)
    filled = dict(body)
    if filled.get("logprobs") is None:
        filled["logprobs"] = True if is_chat else 0
    if is_chat and filled["logprobs"] is True and filled.get("top_logprobs") is None:
        filled["top_logprobs"] = 0
    if filled.get("return_token_ids") is None:
        filled["return_token_ids"] = True
    return filled
