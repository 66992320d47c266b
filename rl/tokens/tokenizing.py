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

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from tandem.rl.errors import TrajectoryError
from tandem.rl.sampling_marks import marks_of
from tandem.rl.tokens.chat_template import ChatTemplate, loses_reasoning, text_parts
from tandem.rl.tokens.choices import NotExactError, Vocabulary, sampling_logprobs
from tandem.rl.tokens.drafts import Draft, TokenizedSequence, Turn, unknown_logprobs
from tandem.rl.tokens.messages import Choice
from tandem.rl.tokens.recent import Recent
from tandem.rl.trajectories import History, MessageOrChoice
from tandem.rl.unread_fields import changes_training

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["ChatTokenizer", "TokenizedSequence", "tokenize_history"]

NUM_RECENT = 16
"""Texts whose ids are kept."""


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
        """Return the text of ids, special tokens included."""
        text = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


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
    drafts: list[Draft] = []
    context = _Context(history, chat, place)
    for index, item in enumerate(history.messages_and_choices):
        try:
            turn = _trained_turn(index, item, chat, allow_training_without_logprobs)
            if turn is not None:
                _add_turn(drafts, turn, context, chat)
        except NotExactError as error:
            raise TrajectoryError(*place, turn=index, reason=f"{error}.", field=error.field) from error
    return [draft.finish(place) for draft in drafts]


def _trained_turn(index: int, item: MessageOrChoice, chat: ChatTokenizer, allow_without_logprobs: bool) -> Turn | None:
    """Return the turn if it has tokens to train, else None."""
    if isinstance(item, Choice):
        is_retokenised = False
        if not item.num_logprobs and not allow_without_logprobs:
            return None
        if item.num_logprobs or item.token_ids is not None:
            ids = chat.vocabulary.sampled_ids(item)
            logprobs = sampling_logprobs(item) if item.num_logprobs else unknown_logprobs(len(ids))
        else:
            ids = _written_ids(item.message, chat)
            logprobs = unknown_logprobs(len(ids))
            is_retokenised = True
        prompt = item.prompt_token_ids
        if prompt is not None:
            chat.vocabulary.checked(prompt, lambda index: ("prompt_token_ids", index))
        marks, version = marks_of(item.sampled_with), item.version
        return Turn(index, ids, logprobs, True, prompt, marks, is_retokenised, version) if ids else None
    if item["role"] == "assistant" and allow_without_logprobs:
        if excluding := changes_training(item):
            raise NotExactError("it isn't read here, and the message would be trained; leave it out", excluding)
        ids = _written_ids(item, chat)
        return Turn(index, ids, unknown_logprobs(len(ids)), False) if ids else None
    return None


def _written_ids(message: Mapping[str, Any], chat: ChatTokenizer) -> list[int]:
    """Return the ids of an assistant message that was written, not sampled, so that only its text is known."""
    if message.get("tool_calls"):
        raise NotExactError(
            "a tool call without token ids can't be trained, since its text isn't known exactly; send the sampled "
            "choice, or leave allow_training_without_logprobs out"
        )
    content = message.get("content") or ""
    return chat.encode(content if isinstance(content, str) else "".join(text_parts(content)))


def _add_turn(drafts: list[Draft], turn: Turn, context: _Context, chat: ChatTokenizer) -> None:
    """Extend the last draft by the turn and its context, or begin a new draft if the context differs."""
    current = drafts[-1] if drafts else Draft()
    before = turn.prompt_token_ids
    if before is None:
        before = chat.encode(context.before(turn.index))
    if before[: len(current.token_ids)] != current.token_ids:
        current = Draft()
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
