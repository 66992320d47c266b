"""Exchanges of chat completions: each choice is a sampled turn, as in `messages_and_choices`."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import ValidationError

from tandem.rl.exchanges.generations import SEND_IDS, Generation, at, context_of, objects, prompt_ids, step_of
from tandem.rl.exchanges.wire import Exchange
from tandem.rl.sampling_marks import marks_of, sampled_with
from tandem.rl.tokens.choices import TOKEN_ID, NotExactError, Vocabulary, sampling_logprobs
from tandem.rl.tokens.messages import Choice
from tandem.rl.unread_fields import ERROR_TYPE

CONTEXT = ("tools", "chat_template", "chat_template_kwargs")
OUR_OWN = (ERROR_TYPE, "value_error")
"""Types of validation errors whose message says what to do."""
WRITTEN = ("content", "refusal", "reasoning", "reasoning_content", "tool_calls", "function_call")


def generations(exchange: Exchange, index: int, vocabulary: Vocabulary) -> list[Generation]:
    """Return the sampled turns of an answer in the order of their choices' index. Raises NotExactError."""
    context = context_of("chat_completions", exchange.request, CONTEXT)
    found: dict[int, Generation | None] = {}
    with at("response"):
        for number, raw in enumerate(objects(exchange.response.get("choices"), "choices")):
            with at("choices", number):
                choice = _validated(raw, exchange)
                if choice.index in found:
                    raise NotExactError(f"another choice of the answer has index {choice.index}, too", "index")
                found[choice.index] = _generation(choice, exchange, index, context, vocabulary)
    return [generation for _, generation in sorted(found.items()) if generation is not None]


def _validated(raw: dict[str, Any], exchange: Exchange) -> Choice:
    try:
        return Choice.model_validate(raw, context=exchange.cut)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        reason = "it isn't as chat completions have it; send the exchange as it was captured"
        if first["type"] in OUR_OWN:
            reason = first["msg"].removeprefix("Value error, ")
        raise NotExactError(reason, *first["loc"]) from error


def _generation(
    choice: Choice, exchange: Exchange, index: int, context: str, vocabulary: Vocabulary
) -> Generation | None:
    """Return the generation of a choice, None if it has no tokens."""
    answer, columns = exchange.response, choice.token_columns
    if choice.token_ids is None and not (columns and all(map(TOKEN_ID.fullmatch, columns.tokens))):
        raise NotExactError(f"it is missing, so the tokens aren't known exactly; {SEND_IDS}", "token_ids")
    if choice.token_ids == [] and any(choice.message.get(part) for part in WRITTEN):
        raise NotExactError(f"it is empty, but the message isn't; {SEND_IDS}", "token_ids")
    ids = vocabulary.sampled_ids(choice)
    prompt = choice.prompt_token_ids if choice.prompt_token_ids is not None else answer.get("prompt_token_ids")
    context_ids = prompt_ids(prompt, vocabulary)
    logprobs: np.ndarray | None = sampling_logprobs(choice) if choice.num_logprobs else None
    mark = choice.sampled_with if isinstance(choice.sampled_with, dict) else sampled_with(exchange.request)
    version = step_of(choice.version, answer.get("policy_version"))
    return Generation.of(index, context, context_ids, ids, logprobs, marks_of(mark), version) if ids else None
