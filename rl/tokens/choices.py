"""Extract the sampled token ids and logprobs from a choice, exactly or not at all."""

from __future__ import annotations

import math
import re
import reprlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING

import numpy as np

from tandem.rl.tokens.messages import Choice
from tandem.rl.tokens.token_columns import TokenColumns

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKEN_ID = re.compile(r"token_id:([0-9]{1,18})")
TOKEN_IDS = re.compile(rf"{TOKEN_ID.pattern}(?:,{TOKEN_ID.pattern})*+")
LOWEST_LOGPROB = -1000.0
"""Engines report lower values for impossible tokens; they carry no information about the ratio."""
HIGHEST_LOGPROB = 0.01
"""A probability of 1, with a margin for rounding in half precision."""
REPLACEMENT = "\ufffd"
"""The text that an incomplete character decodes to."""


class NotExactError(Exception):
    """Tokens can't be determined exactly. The message has the reason and a remedy; the caller adds the turn.

    `field` is the faulty part of the turn, like ("token_ids", 3), or () for the whole turn.
    """

    def __init__(self, reason: str, *field: str | int) -> None:
        super().__init__(reason)
        self.field = field


class Vocabulary:
    """Ids of the tokens that an engine reports.

    Args:
        tokenizer: the base model's.
        size: rows of the model's embedding, if it has more than the tokenizer has tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, size: int | None = None) -> None:
        self._tokenizer = tokenizer
        self._size = size or len(tokenizer)

    def sampled_ids(self, choice: Choice) -> list[int]:
        """Return the ids of a choice, in the order of its logprobs.

        They come from `token_ids`, else from tokens like `token_id:N`, else from tokens that name one entry of the
        vocabulary by its string or bytes. Text is never tokenised again, because that may give other tokens than
        those sampled. Raises NotExactError.
        """
        columns = choice.token_columns
        if choice.token_ids is None:
            return self.checked(self._ids(columns), partial(_in_logprobs, columns, "token"))
        if columns and len(columns) != len(choice.token_ids):
            raise NotExactError(
                f"it has {len(choice.token_ids)} token_ids but {len(columns)} logprobs; send the choice as the engine "
                "returned it",
                "token_ids",
            )
        return self.checked(choice.token_ids, lambda index: ("token_ids", index))

    def checked(self, ids: Sequence[int], field: Callable[[int], tuple[str | int, ...]]) -> list[int]:
        """Return the ids if all are in the vocabulary, else raise NotExactError at `field(index)`."""
        if not ids or (min(ids) >= 0 and max(ids) < self._size):
            return list(ids)
        for index, id_ in enumerate(ids):
            if not 0 <= id_ < self._size:
                raise NotExactError(
                    f"token id {reprlib.repr(id_)} is outside the vocabulary of {self._size}; send tokens that this "
                    "model sampled",
                    *field(index),
                )
        return list(ids)

    def _ids(self, columns: TokenColumns) -> list[int]:
        written = ",".join(columns.tokens)
        if TOKEN_IDS.fullmatch(written) and written.count(",") == len(columns) - 1:
            return list(map(int, written.replace("token_id:", "").split(",")))
        return [self._id(columns, index) for index in range(len(columns))]

    def _id(self, columns: TokenColumns, index: int) -> int:
        text = columns.tokens[index]
        if written := TOKEN_ID.fullmatch(text):
            return int(written[1])
        spelling = _spelling(columns, index)
        id_ = self._tokenizer.convert_tokens_to_ids(text)
        known = isinstance(id_, int) and self._tokenizer.convert_ids_to_tokens(id_) == text
        if isinstance(id_, int) and known and spelling in (None, self._text(id_)):
            return id_
        if spelling is not None and REPLACEMENT not in spelling:
            candidates = self._ids_by_text.get(spelling, ())
            if len(candidates) == 1:
                return candidates[0]
        raise NotExactError(
            f"{reprlib.repr(text)} doesn't name exactly one entry of the vocabulary; sample with return_token_ids=true "
            "(or return_tokens_as_token_ids=true) and send the choice as the engine returned it",
            *_in_logprobs(columns, "token", index),
        )

    def _text(self, id_: int) -> str:
        text = self._tokenizer.decode([id_], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    @cached_property
    def _ids_by_text(self) -> dict[str, list[int]]:
        ids: dict[str, list[int]] = defaultdict(list)
        for id_ in range(len(self._tokenizer)):
            ids[self._text(id_)].append(id_)
        return ids


def _in_logprobs(columns: TokenColumns, part: str, index: int) -> tuple[str | int, ...]:
    """Return the place of a part of a choice's token."""
    return ("logprobs", columns.kind, index, part)


def _spelling(columns: TokenColumns, index: int) -> str | None:
    """Return the text of a token's bytes, or None if it has none."""
    raw = columns.bytes[index]
    if raw is None:
        return None
    try:
        return bytes(raw).decode(errors="replace")
    except ValueError as error:
        raise NotExactError(
            "bytes lie between 0 and 255; send the choice as the engine returned it",
            *_in_logprobs(columns, "bytes", index),
        ) from error


def sampling_logprobs(choice: Choice) -> np.ndarray:
    """Return the sampler's logprob of each token, NaN where unknown. Raises NotExactError for invalid values."""
    columns = choice.token_columns
    return checked_logprobs(columns.logprobs, partial(_in_logprobs, columns, "logprob"))


def checked_logprobs(values: Sequence[float | None], field: Callable[[int], tuple[str | int, ...]]) -> np.ndarray:
    """Return logprobs, NaN where unknown. Raises NotExactError at `field(index)` for a value that can't be one."""
    logprobs = np.array(values, np.float64)  # None becomes NaN
    if (too_high := np.flatnonzero(logprobs > HIGHEST_LOGPROB)).size:
        index = int(too_high[0])
        raise NotExactError(
            f"logprob {values[index]} is above 0; send natural logarithms of probabilities", *field(index)
        )
    logprobs[~(logprobs >= LOWEST_LOGPROB)] = math.nan
    return logprobs
