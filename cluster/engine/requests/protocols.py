"""The paths on which clients of several protocols ask the engine. Importing this module imports no vLLM."""

from __future__ import annotations

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES = "/v1/responses"
MESSAGES, COUNT_TOKENS = "/v1/messages", "/v1/messages/count_tokens"
PATHS = frozenset({CHAT, COMPLETIONS, RESPONSES, MESSAGES, COUNT_TOKENS})


def speaks_anthropic(path: str) -> bool:
    """Return True if requests and answers of a path have Anthropic's format, also those of an unknown path below."""
    return path == MESSAGES or path.startswith(f"{MESSAGES}/")
