"""The policy's own exchanges of a trajectory, as sampled turns with exact tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from tandem.rl.errors import TrajectoryError
from tandem.rl.exchanges import anthropic_messages, chat, completions, responses
from tandem.rl.exchanges.generations import Generation
from tandem.rl.exchanges.policy_names import is_policy, parse
from tandem.rl.exchanges.wire import Exchange, Exchanges, Protocol
from tandem.rl.tokens.choices import NotExactError, Vocabulary

Reader = Callable[[Exchange, int, Vocabulary], list[Generation]]
READERS: Mapping[Protocol, Reader] = {
    "chat_completions": chat.generations,
    "completions": completions.generations,
    "responses": responses.generations,
    "messages": anthropic_messages.generations,
}
MAX_NAMED = 5


@dataclass(frozen=True)
class PolicyExchanges:
    """What training needs of the exchanges of a trajectory."""

    generations: tuple[Generation, ...]
    """The turns that the policy sampled, by time."""
    num_of_others: int
    """Exchanges of other models, like a judge."""


def convert(exchanges: Exchanges, vocabulary: Vocabulary, place: tuple[int, int]) -> PolicyExchanges:
    """Return the turns that the policy sampled. Other models' exchanges are counted, not read.

    `place` is (group, trajectory), for errors. Raises TrajectoryError for a turn without exact tokens, for an exchange
    without a model, and if none is the policy's.
    """
    policy = exchanges.policy
    if policy is None:
        reason = "It isn't said which model is trained, so its exchanges can't be told from others; call of_policy."
        raise TrajectoryError(*place, 0, None, reason, ("exchanges",))
    generations: list[Generation] = []
    others: dict[str, int] = {}
    for protocol, index, exchange in exchanges.in_order():
        name = exchange.model_name
        if name is None:
            reason = "It names no model, so it isn't known whose turn it is; send the exchange as it was captured."
            raise TrajectoryError(*place, 0, index, reason, ("request", "model"), protocol)
        if not is_policy(name, policy):
            others[name] = others.get(name, 0) + 1
            continue
        try:
            generations += _with_version(READERS[protocol](exchange, index, vocabulary), parse(name).step)
        except NotExactError as error:
            raise TrajectoryError(*place, 0, index, f"{error}.", error.field, protocol) from error
    num_of_others = sum(others.values())
    if num_of_others == len(exchanges) > 0:
        raise TrajectoryError(*place, 0, None, _all_others(others, policy), ("exchanges",))
    return PolicyExchanges(tuple(generations), num_of_others)


def _with_version(generations: list[Generation], step: int | None) -> list[Generation]:
    """Return the generations, with the version that the request pinned where the answer doesn't say its version."""
    return [one if one.policy_version is not None else replace(one, policy_version=step) for one in generations]


def _all_others(others: Mapping[str, int], policy: str) -> str:
    named = ", ".join(f"{name[:80]!r}" for name in list(others)[:MAX_NAMED])
    more = ", ..." if len(others) > MAX_NAMED else ""
    return (
        f"No exchange is of the trained model {policy}: its {sum(others.values())} exchanges are of {named}{more}. "
        "Sample the turns from the trained model under its own name, or leave the trajectory out."
    )
