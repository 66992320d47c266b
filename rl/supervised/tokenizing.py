"""Rows of messages to exact token sequences.

The target of an assistant message is what the chat template adds for it after its generation prompt:

    render(messages up to it) - render(messages before it, with the generation prompt)

These are the tokens that the model should sample there, with the end of the turn. Every target stands in the context in
which the template puts it when that turn is sampled. If the context of a turn begins with the sequence so far, the turn
extends it. Otherwise the template renders an earlier turn differently (it drops thinking, or ends a turn in another
way), and the turn begins a sequence of its own. So a row becomes one or more sequences, and a message is trained once.
Everything else, like the results of tools, is context.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from tandem.rl.supervised.config import AssistantTurns
from tandem.rl.supervised.rows import RowError, SupervisedRow
from tandem.rl.tokens.choices import NotExactError
from tandem.rl.tokens.tokenizing import ChatTokenizer, TokenizedSequence
from tandem.rl.unread_fields import changes_training

WEIGHT = "weight"
NOT_RENDERED = ("function_call", "audio", "refusal")
"""Fields of an assistant message that chat templates don't get."""


@dataclass
class _Draft:
    token_ids: list[int] = field(default_factory=list)
    masks: list[np.ndarray] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)

    def add(self, ids: list[int], trained: bool) -> None:
        if trained:
            self.offsets.append(len(self.token_ids))
        self.token_ids += ids
        self.masks.append(np.full(len(ids), trained))

    def finish(self, place: tuple[int, int]) -> TokenizedSequence:
        num_tokens = len(self.token_ids)
        return TokenizedSequence(
            *place,
            history=0,
            token_ids=torch.tensor(self.token_ids, dtype=torch.int64),
            loss_mask=torch.from_numpy(np.concatenate(self.masks)),
            sampling_logprobs=torch.full((num_tokens,), float("nan"), dtype=torch.float64),
            choice_offsets=tuple(self.offsets),
            advantage=1.0,
            weight=1.0,
        )


def tokenize_row(
    row: SupervisedRow, chat: ChatTokenizer, turns: AssistantTurns, line: int = 1, place: tuple[int, int] = (0, 0)
) -> list[TokenizedSequence]:
    """Return the exact sequences of a row, none if it has nothing to train. All weigh the same.

    Args:
        row: messages in order; those after the last trained one are left out.
        chat: the base model's tokens.
        turns: which assistant messages are trained. For `last`, the row must end with one.
        line: of the row in the data, for errors.
        place: (batch, row in the batch), for the sequences.

    Raises:
        RowError: a message can't be trained exactly.
    """
    if reserved := chat.template.reserved(row.chat_template_kwargs or ()):
        raise RowError(line, f"{reserved} can't be set here; leave it out", ("chat_template_kwargs", reserved))
    if turns == "last" and row.messages[-1]["role"] != "assistant":
        reason = 'the last message must be the assistant\'s, because assistant_turns is "last"'
        raise RowError(line, reason, ("messages", len(row.messages) - 1, "role"))
    rendering = _Rendering(row, chat, line)
    drafts: list[_Draft] = []
    for index in _trained_messages(row, turns, line):
        prompt, target = rendering.turn(index)
        draft = drafts[-1] if drafts and prompt[: len(drafts[-1].token_ids)] == drafts[-1].token_ids else _Draft()
        draft.add(prompt[len(draft.token_ids) :], trained=False)
        draft.add(target, trained=True)
        if not drafts or draft is not drafts[-1]:
            drafts.append(draft)
    return [draft.finish(place) for draft in drafts]


def _trained_messages(row: SupervisedRow, turns: AssistantTurns, line: int) -> list[int]:
    found = []
    for index, message in enumerate(row.messages):
        is_trained = message["role"] == "assistant" and (turns == "all" or index == len(row.messages) - 1)
        others = {name: value for name, value in message.items() if name != WEIGHT or message["role"] != "assistant"}
        if unread := changes_training(others):
            raise RowError(line, "isn't read here; leave it out", ("messages", index, unread))
        if message["role"] != "assistant":
            continue
        if (weight := message.get(WEIGHT)) not in (None, 0, 1):
            raise RowError(line, "must be 0 (context only) or 1 (trained)", ("messages", index, WEIGHT))
        if unread := next((name for name in NOT_RENDERED if message.get(name)), None):
            reason = "the chat template doesn't get it; send what the assistant says as content or tool_calls"
            raise RowError(line, reason, ("messages", index, unread))
        if is_trained and weight != 0:
            found.append(index)
    return found


def _check_rendered(message: Mapping[str, Any], target: str) -> None:
    """Raise NotExactError if the template leaves out a part of a message that is to be trained."""
    for name in ("reasoning", "reasoning_content"):
        if (reasoning := message.get(name)) and str(reasoning).strip() not in target:
            raise NotExactError(
                "the model's chat template doesn't render it, so it wouldn't be trained; leave it out, or write it "
                "into content as the model does",
                name,
            )
    for index, call in enumerate(message.get("tool_calls") or ()):
        if (name := call.get("function", {}).get("name")) and name not in target:
            raise NotExactError(
                "the model's chat template doesn't render tool calls, so it wouldn't be trained; write the call into "
                "content as the model does",
                *("tool_calls", index),
            )


class _Rendering:
    """The chat template's renderings of a row's messages."""

    def __init__(self, row: SupervisedRow, chat: ChatTokenizer, line: int) -> None:
        self._row, self._chat, self._line = row, chat, line
        self._prepared: list[dict[str, Any]] = []

    def turn(self, index: int) -> tuple[list[int], list[int]]:
        """Return the ids of a message's prompt and of its target. Raises RowError."""
        try:
            self._prepare(index)
            before = self._render(index, generation_prompt=True)
            whole = self._render(index + 1, generation_prompt=False)
            if not whole.startswith(before):
                raise NotExactError(
                    "the chat template renders it in another way than after its generation prompt, so the tokens that "
                    "the model should sample aren't known; write the message as the template renders it, or leave the "
                    "row out"
                )
            _check_rendered(self._row.messages[index], whole[len(before) :])
            prompt, rendered = self._chat.encode(before), self._chat.encode(whole)
            # Tokens may differ at the border; the prompt's are those that the model gets.
            follows = rendered[: len(prompt)] == prompt
            target = rendered[len(prompt) :] if follows else self._chat.encode(whole[len(before) :])
            if not prompt:
                raise NotExactError("no token precedes its first one, which therefore has no probability")
        except NotExactError as error:
            raise RowError(self._line, str(error), ("messages", index, *error.field)) from error
        return prompt, target

    def _render(self, stop: int, generation_prompt: bool) -> str:
        row = self._row
        return self._chat.template.render(
            self._prepared[:stop], row.tools, row.chat_template_kwargs, generation_prompt=generation_prompt
        )

    def _prepare(self, last: int) -> None:
        for index in range(len(self._prepared), last + 1):
            message: Mapping[str, Any] = self._row.messages[index]
            shown = {name: value for name, value in message.items() if name != WEIGHT}
            try:
                self._prepared.append(self._chat.template.prepare(shown))
            except NotExactError as error:
                raise RowError(self._line, str(error), ("messages", index, *error.field)) from error
