"""One sampled turn of an exchange, whatever its protocol."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import NoneType
from typing import Any

import numpy as np

from tandem.rl.tokens.choices import NotExactError, Vocabulary, checked_logprobs
from tandem.rl.tokens.drafts import Turn, unknown_logprobs
from tandem.rl.tokens.messages import MAX_STEP

SEND_IDS = "sample with return_token_ids=true (the default of this service) and send the exchange as it was captured"


@dataclass(frozen=True)
class Generation:
    """A sampled turn with its exact tokens.

    Turns with an equal `context` (tools and the like, as sent) may continue each other.
    """

    turn: Turn
    context: str
    num_logprobs: int
    """0: the answer has no logprobs."""
    policy_version: int | None

    @classmethod
    def of(
        cls,
        exchange: int,
        context: str,
        prompt: list[int],
        ids: list[int],
        logprobs: np.ndarray | None,
        marks: tuple[str, ...],
        policy_version: int | None,
    ) -> Generation:
        """Return a generation of the exchange with this index."""
        known = unknown_logprobs(len(ids)) if logprobs is None else logprobs
        turn = Turn(exchange, ids, known, True, prompt, marks)
        return cls(turn, context, 0 if logprobs is None else len(logprobs), policy_version)

    @property
    def num_tokens(self) -> int:
        return len(self.turn.token_ids)


def context_of(protocol: str, request: Mapping[str, Any], names: Sequence[str]) -> str:
    """Return a text of the options `names` of a request. Absent, null and empty are the same."""
    options = {name: request[name] for name in names if request.get(name)}
    return json.dumps([protocol, options], sort_keys=True)


@contextmanager
def at(*place: str | int) -> Iterator[None]:
    """Have a NotExactError of the block name the path of the part that the block reads."""
    try:
        yield
    except NotExactError as error:
        raise NotExactError(str(error), *place, *error.field) from error


def objects(value: Any, name: str) -> list[dict[str, Any]]:
    """Return a list of JSON objects. Raises NotExactError at `name`."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise NotExactError("it must be a list of objects; send the exchange as it was captured", name)
    return value


def known_ids(value: Any, vocabulary: Vocabulary, name: str) -> list[int]:
    """Return ids of the vocabulary. Raises NotExactError at `name`, also for null."""
    if value is None:
        raise NotExactError(f"it is missing, so the tokens aren't known exactly; {SEND_IDS}", name)
    if not isinstance(value, list) or not set(map(type, value)) <= {int}:
        raise NotExactError(f"it must be a list of token ids; {SEND_IDS}", name)
    return vocabulary.checked(value, lambda index: (name, index))


def prompt_ids(value: Any, vocabulary: Vocabulary, name: str = "prompt_token_ids") -> list[int]:
    """Return the ids of a prompt, at least one. Raises NotExactError at `name`."""
    return known_ids(value or None, vocabulary, name)


def known_logprobs(value: Any, num_tokens: int, name: str) -> np.ndarray | None:
    """Return a logprob for each token, NaN for null; None if there are none. Raises NotExactError at `name`."""
    if not value:
        return None
    if not isinstance(value, list) or not set(map(type, value)) <= {int, float, NoneType}:
        raise NotExactError("it must be a list of numbers; send the exchange as it was captured", name)
    if len(value) != num_tokens:
        raise NotExactError(
            f"it has {len(value)} logprobs for {num_tokens} token ids; send the exchange as it was captured", name
        )
    return checked_logprobs(value, lambda index: (name, index))


def step_of(*values: Any) -> int | None:
    """Return the first value that is a policy version, as the service writes it."""
    return next((value for value in values if type(value) is int and 0 <= value <= MAX_STEP), None)
