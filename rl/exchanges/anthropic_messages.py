"""Exchanges of Anthropic's Messages API: an answer is one sampled turn, with its tokens beside `content`."""

from __future__ import annotations

from tandem.rl.exchanges.generations import (
    SEND_IDS,
    Generation,
    at,
    context_of,
    known_ids,
    known_logprobs,
    prompt_ids,
    step_of,
)
from tandem.rl.exchanges.wire import Exchange
from tandem.rl.sampling_marks import marks_of
from tandem.rl.tokens.choices import NotExactError, Vocabulary

CONTEXT = ("system", "tools", "chat_template", "chat_template_kwargs")


def generations(exchange: Exchange, index: int, vocabulary: Vocabulary) -> list[Generation]:
    """Return the turn of an answer; none if it has no tokens. Raises NotExactError."""
    answer, context = exchange.response, context_of("messages", exchange.request, CONTEXT)
    with at("response"):
        prompt = prompt_ids(answer.get("prompt_token_ids"), vocabulary)
        ids = known_ids(answer.get("token_ids"), vocabulary, "token_ids")
        if not ids and answer.get("content"):
            raise NotExactError(f"it is empty, but the content isn't; {SEND_IDS}", "token_ids")
        logprobs = known_logprobs(answer.get("logprobs") or answer.get("compact_logprobs"), len(ids), "logprobs")
    marks, version = marks_of(answer.get("sampled_with")), step_of(answer.get("policy_version"))
    return [Generation.of(index, context, prompt, ids, logprobs, marks, version)] if ids else []
