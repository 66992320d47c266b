"""Conversations that are sampled turn by turn from an engine, and the rule that each of them must train exactly."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from families import EngineRenderer

from tandem.rl.tokens.tokenizing import ChatTokenizer, TokenizedSequence, tokenize_history
from tandem.rl.trajectories import History


@dataclass(frozen=True)
class Sampled:
    """A turn of the model."""

    ids: list[int]
    message: dict[str, Any]
    """As the engine parses the ids."""
    sent_back: dict[str, Any] | None = None
    """The message in the next request, if it isn't the engine's."""


@dataclass
class Played:
    """A conversation with the prompt of each sampled turn."""

    items: list[dict[str, Any]] = field(default_factory=list)
    """Messages and choices."""
    prompts: list[list[int]] = field(default_factory=list)
    sampled: list[list[int]] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    """Tools and template arguments."""


def play(engine: EngineRenderer, template: str | None, turns: list[Any], options: dict[str, Any]) -> Played:
    """Sample the turns one after the other. Raises Refused."""
    played, messages = Played(options=options), []
    for turn in turns:
        if not isinstance(turn, Sampled):
            messages.append(turn)
            played.items.append(turn)
            continue
        prompt = engine.prompt(template, {"messages": messages, **options})
        played.items.append(_choice(turn, prompt))
        played.prompts.append(prompt)
        played.sampled.append(turn.ids)
        messages.append(turn.sent_back or turn.message)
    return played


def _choice(turn: Sampled, prompt: list[int]) -> dict[str, Any]:
    content = [{"token": f"token_id:{id_}", "logprob": -1.0, "top_logprobs": [], "bytes": None} for id_ in turn.ids]
    return {
        "finish_reason": "stop",
        "index": 0,
        "logprobs": {"content": content},
        "message": turn.message,
        "token_ids": turn.ids,
        "prompt_token_ids": prompt,
    }


def train(played: Played, chat: ChatTokenizer, with_prompts: bool = True) -> list[TokenizedSequence]:
    """Return the sequences of a conversation after checking that each sampled token trains once, after its prompt.

    Raises TrajectoryError for a conversation that is refused.
    """
    dropped = () if with_prompts else ("prompt_token_ids",)
    items = [{key: value for key, value in item.items() if key not in dropped} for item in played.items]
    history = History.model_validate({"messages_and_choices": items, **played.options})
    sequences = tokenize_history(history, chat)
    turns = iter(zip(played.prompts, played.sampled, strict=True))
    for sequence in sequences:
        ids, is_sampled = sequence.token_ids.tolist(), [False] * sequence.num_tokens
        for offset in sequence.choice_offsets:
            prompt, sampled = next(turns)
            assert ids[:offset] == prompt
            assert ids[offset : offset + len(sampled)] == sampled
            is_sampled[offset : offset + len(sampled)] = [True] * len(sampled)
        assert sequence.loss_mask.tolist() == is_sampled
    assert next(turns, None) is None
    return sequences
