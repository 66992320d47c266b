"""The sampled turns of a trajectory, as a run counts them, in either wire form. Loads no torch.

The service converts exchanges itself and checks each token; a run needs numbers, versions and which tokens were equal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tandem.rl.exchanges.policy_names import is_policy
from tandem.rl.exchanges.wire import Exchanges
from tandem.rl.tokens.messages import Choice
from tandem.rl.trajectories import Trajectory, choices_of

Answer = Mapping[str, Any]


@dataclass(frozen=True)
class SampledTurn:
    """A turn that the policy sampled."""

    sampled: Sequence[object]
    """Its token ids, or what stands for them where it has none."""
    num_tokens: int
    num_prompt_tokens: int
    policy_version: int | None
    is_cut_off: bool
    """It reached its token limit."""


def turns_of(trajectory: Trajectory) -> list[SampledTurn]:
    """Return the turns in order. Of exchanges, those that the policy's models answered (`Exchanges.of_policy`)."""
    if trajectory.exchanges is not None:
        return list(_exchanged(trajectory.exchanges))
    return [_chosen(choice) for choice in choices_of(trajectory)]


def _chosen(choice: Choice) -> SampledTurn:
    return SampledTurn(
        choice.token_ids or [token["token"] for token in choice.token_logprobs] or [choice.message],
        len(choice.token_ids or ()),
        len(choice.prompt_token_ids or ()),
        choice.version,
        choice.finish_reason == "length",
    )


def _exchanged(exchanges: Exchanges) -> Iterator[SampledTurn]:
    for protocol, _, exchange in exchanges.in_order():
        name = exchange.model_name
        if name is not None and exchanges.policy is not None and is_policy(name, exchanges.policy):
            yield from _READERS[protocol](exchange.response)


def _choices(answer: Answer) -> Iterator[SampledTurn]:
    for choice in answer.get("choices") or ():
        yield _turn(choice.get("token_ids"), choice, answer, choice.get("finish_reason") == "length")


def _generations(answer: Answer) -> Iterator[SampledTurn]:
    for generation in answer.get("token_generations") or ():
        ids = generation.get("token_ids") or [token["token_id"] for token in generation.get("output_tokens") or ()]
        yield _turn(ids, generation, answer, answer.get("status") == "incomplete")


def _message(answer: Answer) -> Iterator[SampledTurn]:
    yield _turn(answer.get("token_ids"), answer, answer, answer.get("stop_reason") == "max_tokens")


def _turn(ids: Any, part: Answer, answer: Answer, is_cut_off: bool) -> SampledTurn:
    prompt = part.get("prompt_token_ids") or answer.get("prompt_token_ids") or ()
    version = part.get("policy_version", answer.get("policy_version"))
    return SampledTurn(ids or (), len(ids or ()), len(prompt), version if type(version) is int else None, is_cut_off)


_READERS: Mapping[str, Callable[[Answer], Iterator[SampledTurn]]] = {
    "chat_completions": _choices,
    "completions": _choices,
    "responses": _generations,
    "messages": _message,
}
