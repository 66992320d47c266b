"""Choices that were sampled from another distribution than the policy's.

The service writes into every choice the options of its request that made it so (`sampled_with`): {"top_p": 0.9}, or {}
for none. The logprobs of such a choice are still the policy's own, before temperature, penalties and truncation
(vLLM's `raw_logprobs`), as the learner computes them. The importance ratio is therefore that of the policies without
these options: the loss is not corrected for the tokens that the options made more or less likely, or impossible.
A mark is information only. It changes what a job reports, never how it trains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tandem.rl.tokens.messages import Choice

MARKS = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "allowed_token_ids",
    "bad_words",
    "min_tokens",
    "thinking_token_budget",
    "response_format",
    "structured_outputs",
    "tool_choice",
    "tools",
    "use_beam_search",
    "watermarking",
    "vllm_xargs",
)
"""Options of a completion request that change which tokens are sampled. Other keys of a mark are ignored."""
UNKNOWN = "unknown"
"""Stands for the options of a choice without a mark: it wasn't sampled by this release of the service."""


def marks_of(choice: Choice) -> tuple[str, ...]:
    """Return the options that changed the distribution of a choice's tokens, or `unknown`."""
    mark = choice.sampled_with
    return tuple(name for name in MARKS if name in mark) if isinstance(mark, dict) else (UNKNOWN,)
