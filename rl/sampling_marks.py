"""Choices that were sampled from another distribution than the policy's.

The service writes into every choice the options of its request that made it so (`sampled_with`): {"top_p": 0.9}, or {}
for none. The logprobs of such a choice are still the policy's own, before temperature, penalties and truncation
(vLLM's `raw_logprobs`), as the learner computes them. The importance ratio is therefore that of the policies without
these options: the loss is not corrected for the tokens that the options made more or less likely, or impossible.
A mark is information only. It changes what a job reports, never how it trains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Changes = Callable[[Any], object]
"""True (or a value that counts as true) if an option with this value changes which tokens are sampled."""


def _unlike(*neutral: float) -> Changes:
    def changes(value: Any) -> bool:
        try:
            return float(value) not in neutral  # the engine accepts numbers in quotes too
        except (TypeError, ValueError, OverflowError):
            return bool(value)

    return changes


def _is_format(value: Any) -> bool:
    return not isinstance(value, Mapping) or value.get("type") != "text"


def _is_forced(value: Any) -> bool:
    return value not in ("auto", "none")


def _has_strict_tool(tools: Any) -> bool:
    """True if the engine holds calls of a tool to its schema."""
    functions = [tool.get("function") for tool in tools if isinstance(tool, Mapping)] if isinstance(tools, list) else []
    return any(isinstance(function, Mapping) and function.get("strict") for function in functions)


CHANGES: dict[str, Changes] = {
    "temperature": _unlike(1),
    "top_p": _unlike(1),
    "top_k": _unlike(0, -1),
    "min_p": _unlike(0),
    "presence_penalty": _unlike(0),
    "frequency_penalty": _unlike(0),
    "repetition_penalty": _unlike(1),
    "logit_bias": bool,
    "allowed_token_ids": bool,
    "bad_words": bool,
    "min_tokens": _unlike(0),
    "thinking_token_budget": lambda value: True,
    "response_format": _is_format,
    "structured_outputs": bool,
    "tool_choice": _is_forced,
    "tools": _has_strict_tool,
    "use_beam_search": bool,
    "watermarking": bool,
    "vllm_xargs": bool,
}
"""Options of a completion request that change which tokens are sampled. Other keys of a mark are ignored."""
UNKNOWN = "unknown"
"""Stands for the options of a choice without a mark: it wasn't sampled by this release of the service."""


def marks_of(mark: object) -> tuple[str, ...]:
    """Return the options in a `sampled_with` that changed the distribution of a choice's tokens, or `unknown`."""
    return tuple(name for name in CHANGES if name in mark) if isinstance(mark, dict) else (UNKNOWN,)


def sampled_with(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a request that change the distribution, {} if none does. Null means unset.

    The value is the number that was sent, or true: a schema or a list may be large.
    """
    changed = {
        name: request[name]
        for name, changes in CHANGES.items()
        if request.get(name) is not None and changes(request[name])
    }
    return {name: value if isinstance(value, (int, float)) else True for name, value in changed.items()}
