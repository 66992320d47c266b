"""Trajectories to exact token sequences.

The trained tokens are the sampled tokens, after the tokens they were conditioned on. The context of a trained turn is,
in order of preference,

1. the choice's own `prompt_token_ids`: the engine's actual input;
2. the chat template's rendering of the messages before the turn.

If the context begins with the tokens of the sequence so far, the turn extends that sequence. Otherwise the template
renders an earlier turn differently (it drops thinking, or reformats a tool call), or its text has other tokens than the
sampled ones, and the turn begins a new sequence. So a history becomes one or more sequences, and each of them is exact.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tandem.rl.errors import TrajectoryError
from tandem.rl.sampling_marks import marks_of
from tandem.rl.tokens.chat_template import ChatTemplate, loses_reasoning, text_parts
from tandem.rl.tokens.choices import NotExactError, Vocabulary, sampling_logprobs
from tandem.rl.tokens.messages import Choice
from tandem.rl.tokens.recent import Recent
from tandem.rl.trajectories import History, MessageOrChoice
from tandem.rl.unread_fields import changes_training

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NUM_RECENT = 16
"""Texts whose ids are kept."""


@dataclass(frozen=True, eq=False)
class TokenizedSequence:
    """One exact token sequence of a history. Tensors are [T] and describe token t."""

    group: int
    """Index of the trajectory group in the job."""
    trajectory: int
    """Index of the trajectory in its group."""
    history: int
    """0 for the trajectory's own messages, k for additional_histories[k - 1]."""
    token_ids: Tensor
    """int64."""
    loss_mask: Tensor
    """bool. True where the token was sampled and is trained."""
    sampling_logprobs: Tensor
    """float64. The sampler's logprob of the token, NaN where unknown."""
    choice_offsets: tuple[int, ...]
    """Index of the first token of each trained choice."""
    advantage: float = 0.0
    """Relative to the group, before balancing and normalisation."""
    weight: float = 0.0
    """1 / trained tokens of the trajectory, before normalisation."""
    prompt_length: int = 0
    """Tokens shared with every other sequence of the group, less the last, which predicts the first own token."""
    policy_version: int | None = None
    """The step of the policy version at the start of the trajectory, if known."""
    sampled_with: tuple[tuple[str, int], ...] = ()
    """Trained tokens by `sampling_marks`."""

    @property
    def num_tokens(self) -> int:
        return self.token_ids.numel()

    @property
    def num_trained_tokens(self) -> int:
        return int(self.loss_mask.sum())


class ChatTokenizer:
    """The parts of a base model that tokenising needs: vocabulary, chat template, encoding of text.

    Args:
        tokenizer: the base model's.
        vocab_size: rows of the model's embedding, if it has more than the tokenizer has tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, vocab_size: int | None = None) -> None:
        self.vocabulary = Vocabulary(tokenizer, vocab_size)
        self.template = ChatTemplate(tokenizer)
        self._tokenizer = tokenizer
        self._encoded: Recent[list[int]] = Recent(NUM_RECENT)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text. The caller must not change the list."""
        encode = partial(self._tokenizer.encode, text, add_special_tokens=False, verbose=False)
        return self._encoded.get(text, encode)

    def decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


@dataclass(frozen=True)
class _Turn:
    """A turn to train: its index in the history, its sampled tokens, and their context if known."""

    index: int
    token_ids: list[int]
    logprobs: np.ndarray
    is_choice: bool
    prompt_token_ids: list[int] | None = None
    marks: tuple[str, ...] = ()
    """See `sampling_marks`."""


@dataclass
class _Draft:
    """A sequence under construction."""

    token_ids: list[int] = field(default_factory=list)
    loss_masks: list[np.ndarray] = field(default_factory=list)
    logprobs: list[np.ndarray] = field(default_factory=list)
    choice_offsets: list[int] = field(default_factory=list)
    marks: Counter[str] = field(default_factory=Counter)

    def add_context(self, ids: list[int]) -> None:
        self._add(ids, _unknown(len(ids)), trained=False)

    def add_turn(self, turn: _Turn) -> None:
        if turn.is_choice:
            self.choice_offsets.append(len(self.token_ids))
        self._add(turn.token_ids, turn.logprobs, trained=True)
        self.marks.update(dict.fromkeys(turn.marks, len(turn.token_ids)))

    def _add(self, ids: list[int], logprobs: np.ndarray, trained: bool) -> None:
        self.token_ids += ids
        self.logprobs.append(logprobs)
        self.loss_masks.append(np.full(len(ids), trained))


def tokenize_history(
    history: History,
    chat: ChatTokenizer,
    allow_training_without_logprobs: bool = False,
    place: tuple[int, int, int] = (0, 0, 0),
) -> list[TokenizedSequence]:
    """Return the exact sequences of one history, none if it has nothing to train.

    Choices with logprobs are trained and, with `allow_training_without_logprobs`, also choices and assistant messages
    without. Anything after the last of them is dropped.

    Args:
        history: messages and choices in order.
        chat: the base model's tokens.
        allow_training_without_logprobs: as in TrainingConfig.
        place: (group, trajectory, history), for the sequences and for error messages.

    Raises:
        TrajectoryError: a turn can't be tokenised exactly. It has the turn, the field, the reason and a remedy.
    """
    if reserved := chat.template.reserved(history.chat_template_kwargs or ()):
        reason = f"{reserved} can't be set here; leave it out."
        raise TrajectoryError(*place, turn=None, reason=reason, field=("chat_template_kwargs", reserved))
    drafts: list[_Draft] = []
    context = _Context(history, chat, place)
    for index, item in enumerate(history.messages_and_choices):
        try:
            turn = _trained_turn(index, item, chat, allow_training_without_logprobs)
            if turn is not None:
                _add_turn(drafts, turn, context, chat)
        except NotExactError as error:
            raise TrajectoryError(*place, turn=index, reason=f"{error}.", field=error.field) from error
    return [_finish(draft, place) for draft in drafts]


def _trained_turn(index: int, item: MessageOrChoice, chat: ChatTokenizer, allow_without_logprobs: bool) -> _Turn | None:
    """Return the turn if it has tokens to train, else None."""
    if isinstance(item, Choice):
        if not item.num_logprobs and not allow_without_logprobs:
            return None
        if item.num_logprobs or item.token_ids is not None:
            ids = chat.vocabulary.sampled_ids(item)
            logprobs = sampling_logprobs(item) if item.num_logprobs else _unknown(len(ids))
        else:
            ids = _written_ids(item.message, chat)
            logprobs = _unknown(len(ids))
        prompt = item.prompt_token_ids
        if prompt is not None:
            chat.vocabulary.checked(prompt, lambda index: ("prompt_token_ids", index))
        return _Turn(index, ids, logprobs, True, prompt, marks_of(item)) if ids else None
    if item["role"] == "assistant" and allow_without_logprobs:
        if excluding := changes_training(item):
            raise NotExactError("it isn't read here, and the message would be trained; leave it out", excluding)
        ids = _written_ids(item, chat)
        return _Turn(index, ids, _unknown(len(ids)), False) if ids else None
    return None


def _unknown(num_tokens: int) -> np.ndarray:
    return np.full(num_tokens, math.nan)


def _written_ids(message: Mapping[str, Any], chat: ChatTokenizer) -> list[int]:
    """Return the ids of an assistant message that was written, not sampled, so that only its text is known."""
    if message.get("tool_calls"):
        raise NotExactError(
            "a tool call without token ids can't be trained, since its text isn't known exactly; send the sampled "
            "choice, or leave allow_training_without_logprobs out"
        )
    content = message.get("content") or ""
    return chat.encode(content if isinstance(content, str) else "".join(text_parts(content)))


def _add_turn(drafts: list[_Draft], turn: _Turn, context: _Context, chat: ChatTokenizer) -> None:
    """Extend the last draft by the turn and its context, or begin a new draft if the context differs."""
    current = drafts[-1] if drafts else _Draft()
    before = turn.prompt_token_ids
    if before is None:
        before = chat.encode(context.before(turn.index))
    if before[: len(current.token_ids)] != current.token_ids:
        current = _Draft()
    current.add_context(before[len(current.token_ids) :])
    if not current.token_ids:
        raise NotExactError("no token precedes its first one, which therefore has no probability; send its prompt")
    current.add_turn(turn)
    if not drafts or current is not drafts[-1]:
        drafts.append(current)


class _Context:
    """The chat template's rendering of the messages before a turn."""

    def __init__(self, history: History, chat: ChatTokenizer, place: tuple[int, int, int]) -> None:
        self._history, self._template, self._place = history, chat.template, place
        self._prepared: list[dict[str, Any]] = []

    def before(self, turn: int) -> str:
        items = self._history.messages_and_choices
        for index in range(len(self._prepared), turn):
            try:
                self._prepared.append(self._prepare(items[index], turn))
            except NotExactError as error:
                raise TrajectoryError(*self._place, turn=index, reason=f"{error}.", field=error.field) from error
        return self._template.render(self._prepared[:turn], self._history.tools, self._history.chat_template_kwargs)

    def _prepare(self, item: MessageOrChoice, turn: int) -> dict[str, Any]:
        # It isn't recorded whether the client sent the reasoning of a choice back with its next request.
        if isinstance(item, Choice):
            unknown = bool(item.message.get("reasoning") or item.message.get("reasoning_content"))
        else:
            unknown = loses_reasoning(item)
        if unknown:
            raise NotExactError(
                f"its reasoning is separate from its content, and it isn't known how it was sent back for turn {turn}; "
                "sample with return_token_ids=true and keep prompt_token_ids on each choice"
            )
        return self._template.prepare(item)


def _finish(draft: _Draft, place: tuple[int, int, int]) -> TokenizedSequence:
    return TokenizedSequence(
        *place,
        token_ids=torch.from_numpy(np.array(draft.token_ids, np.int64)),
        loss_mask=torch.from_numpy(np.concatenate(draft.loss_masks)),
        sampling_logprobs=torch.from_numpy(np.concatenate(draft.logprobs)),
        choice_offsets=tuple(draft.choice_offsets),
        sampled_with=tuple(draft.marks.items()),
    )
