"""Exchanges of the Responses API. An answer may hold several generations: the model was called again after a tool.

The tokens are in `token_generations` of the answer: for each generation the ids of its whole prompt and of its output,
and which items of `output` it made.
"""

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
from tandem.rl.sampling_marks import marks_of
from tandem.rl.tokens.choices import NotExactError, Vocabulary

CONTEXT = ("instructions", "tools", "conversation", "chat_template", "chat_template_kwargs")


def generations(exchange: Exchange, index: int, vocabulary: Vocabulary) -> list[Generation]:
    """Return the generations of an answer in order. Raises NotExactError."""
    answer, context = exchange.response, context_of("responses", exchange.request, CONTEXT)
    with at("response"):
        output = objects(answer.get("output") or [], "output")
        entries = objects(answer.get("token_generations") or [], "token_generations")
        _check_coverage(output, entries)
        found = []
        for number, entry in enumerate(entries):
            with at("token_generations", number):
                found.append(_generation(entry, answer, index, context, vocabulary))
    return [generation for generation in found if generation is not None]


def _check_coverage(output: list[dict[str, Any]], entries: list[dict[str, Any]]) -> None:
    """Raise NotExactError for an item that the model made but no generation lists."""
    covered: set[int] = set()
    for number, entry in enumerate(entries):
        indices = entry.get("output_indices")
        if not isinstance(indices, list) or not all(type(one) is int and 0 <= one < len(output) for one in indices):
            raise NotExactError(
                f"it must list items of output, from 0 to {len(output) - 1}; send the exchange as it was captured",
                *("token_generations", number, "output_indices"),
            )
        if len(set(indices)) != len(indices) or covered & set(indices):
            raise NotExactError(
                "it lists an item of output that is listed already; send the exchange as it was captured",
                *("token_generations", number, "output_indices"),
            )
        covered |= set(indices)
    left = [number for number, item in enumerate(output) if number not in covered and _is_sampled(item)]
    if left:
        raise NotExactError(
            f"it has no tokens of output {left[0]}, so that item isn't known exactly; {SEND_IDS}", "token_generations"
        )


def _is_sampled(item: dict[str, Any]) -> bool:
    """True for all items but results of tools, which the client or server adds."""
    return not str(item.get("type", "")).endswith("_output")


def _generation(
    entry: dict[str, Any], answer: dict[str, Any], index: int, context: str, vocabulary: Vocabulary
) -> Generation | None:
    prompt = prompt_ids(entry.get("prompt_token_ids"), vocabulary)
    if entry.get("token_ids") is not None:
        ids = known_ids(entry["token_ids"], vocabulary, "token_ids")
        values, name = entry.get("logprobs") or entry.get("compact_logprobs"), "logprobs"
    else:
        tokens = objects(entry.get("output_tokens"), "output_tokens")
        with at("output_tokens"):
            ids = known_ids([token.get("token_id") for token in tokens], vocabulary, "token_id")
        values, name = [token.get("logprob") for token in tokens], "output_tokens"
    if not ids and entry.get("output_indices"):
        raise NotExactError(f"it is empty, but the generation made output; {SEND_IDS}", "output_tokens")
    logprobs = None if all(value is None for value in values or ()) else known_logprobs(values, len(ids), name)
    version = step_of(entry.get("policy_version"), answer.get("policy_version"))
    marks = marks_of(entry.get("sampled_with", answer.get("sampled_with")))
    return Generation.of(index, context, prompt, ids, logprobs, marks, version) if ids else None
