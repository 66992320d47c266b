"""The bytes that a token stands for: exact where its text alone isn't, as in a part of a character."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
SPACE = "\u2581"
"""SentencePiece writes a space as this character."""


def token_bytes(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[bytes]:
    """Return the bytes of each token. An id that the vocabulary doesn't have stands for none."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return [str(tokenizer.decode([id_], skip_special_tokens=False)).encode() for id_ in ids]
    added = {id_: str(token) for id_, token in tokenizer.added_tokens_decoder.items()}
    is_byte_level = "ByteLevel" in _decoders(backend)
    pieces = tokenizer.convert_ids_to_tokens(list(ids))
    return [
        added[id_].encode() if id_ in added else _bytes_of(piece, is_byte_level)
        for id_, piece in zip(ids, pieces, strict=True)
    ]


def _decoders(backend: object) -> set[str]:
    """Return the types of a tokenizer's decoder and of its parts."""
    decoder = getattr(backend, "decoder", None)
    if decoder is None:
        return set()
    described = json.loads(decoder.__getstate__())
    return {described["type"], *(part["type"] for part in described.get("decoders", ()))}


def _bytes_of(piece: str | None, is_byte_level: bool) -> bytes:
    if piece is None:
        return b""
    if is_byte_level:
        known = _bytes_by_character()
        if all(character in known for character in piece):
            return bytes(known[character] for character in piece)
    elif byte := _BYTE.fullmatch(piece):
        return bytes([int(byte[1], 16)])
    return piece.replace(SPACE, " ").encode()


@cache
def _bytes_by_character() -> dict[str, int]:
    """Return the byte that each character of a byte-level vocabulary stands for (GPT-2's table)."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {character: byte for byte, character in bytes_to_unicode().items()}
