"""Exchanges of completions: a prompt of text or tokens, each choice a sampled continuation."""

from __future__ import annotations

from typing import Any

from tandem.rl.exchanges.generations import (
    SEND_IDS,
    Generation,
    at,
    context_of,
    known_ids,
    known_logprobs,
    objects,
    prompt_ids,
    step_of,
)
from tandem.rl.exchanges.wire import Exchange
from tandem.rl.sampling_marks import marks_of, sampled_with
from tandem.rl.tokens.choices import TOKEN_ID, NotExactError, Vocabulary
from tandem.rl.tokens.messages import span_version

COLUMNS = ("tokens", "token_logprobs")


def generations(exchange: Exchange, index: int, vocabulary: Vocabulary) -> list[Generation]:
    """Return the sampled continuations of an answer in its order. Raises NotExactError."""
    if exchange.request.get("max_tokens") == 0:  # only the prompt was asked for
        return []
    with at("response"):
        choices = list(enumerate(objects(exchange.response.get("choices"), "choices")))
        found = []
        for number, choice in sorted(choices, key=lambda one: _index(one[1].get("index"), one[0])):
            with at("choices", number):
                found.append(_generation(choice, exchange, index, vocabulary))
    return [generation for generation in found if generation is not None]


def _index(value: Any, otherwise: int) -> int:
    return value if type(value) is int else otherwise


def _generation(choice: dict[str, Any], exchange: Exchange, index: int, vocabulary: Vocabulary) -> Generation | None:
    answer, request = exchange.response, exchange.request
    prompt = prompt_ids(choice.get("prompt_token_ids") or answer.get("prompt_token_ids"), vocabulary)
    columns = choice.get("logprobs")
    tokens, values = (columns.get(name) or [] for name in COLUMNS) if isinstance(columns, dict) else ([], [])
    num_echoed = len(prompt) if request.get("echo") else 0  # the logprobs then begin with those of the prompt
    ids = choice.get("token_ids")
    if ids is None:
        ids = _written_ids(tokens)
        if ids is not None and num_echoed:
            ids = ids[num_echoed:] if ids[:num_echoed] == prompt else None
    ids = known_ids(ids, vocabulary, "token_ids")
    if not ids and choice.get("text") and not num_echoed:
        raise NotExactError(f"it is empty, but the text isn't; {SEND_IDS}", "token_ids")
    if num_echoed and isinstance(values, list) and len(values) == num_echoed + len(ids):
        values = values[num_echoed:]
    with at("logprobs"):
        logprobs = known_logprobs(values, len(ids), "token_logprobs")
    mark = choice.get("sampled_with")
    marks = marks_of(mark if isinstance(mark, dict) else sampled_with(request))
    version = step_of(
        choice.get("policy_version"), answer.get("policy_version"), span_version(choice.get("policy_token_spans"))
    )
    context = context_of("completions", request, ())
    return Generation.of(index, context, prompt, ids, logprobs, marks, version) if ids else None


def _written_ids(tokens: Any) -> list[int] | None:
    """Return the ids of tokens that are all written as `token_id:N`, else None."""
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        return None
    found = [TOKEN_ID.fullmatch(token) for token in tokens]
    return [int(match[1]) for match in found if match] if all(found) else None
