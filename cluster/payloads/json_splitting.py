"""Split a large JSON object while it streams in, in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

CHUNK_BYTES = 256 << 10
"""A good chunk size; scanning a chunk takes about twenty times its memory."""

_QUOTE, _ESCAPE, _COMMA, _ARRAY = b'"\\,['
_STEP = np.zeros(256, np.int8)
_STEP[list(b"[{")], _STEP[list(b"]}")] = 1, -1


class JsonSplitter:
    """Splits `{"a": 1, "items": [x, y]}` into its envelope, `{"a": 1, "items": []}`, and the elements x and y.

        splitter = JsonSplitter()
        for chunk in body:
            for element in splitter.feed(chunk):
                ...                                 # one element's JSON
        splitter.envelope                           # the rest, small

    Only arrays that are values of the object's own keys are emptied. Nothing is parsed: for valid JSON the parts are
    exact, and any fault of an invalid body is in its envelope or in an element, whose parser then rejects it.
    `with_elements=False` skips the elements.
    """

    def __init__(self, with_elements: bool = True):
        self.envelope = bytearray()
        self.num_arrays = 0
        self._with_elements = with_elements
        tokens = b'"\\[]{},' if with_elements else b'"\\[]{}'
        self._is_token = bytes(byte in tokens for byte in range(256))
        self._num_bytes = 0
        self._escaped = False  # True if a backslash escapes the next byte
        self._in_string = False
        self._depth = 0
        self._in_object: bool | None = None  # None before the first token
        self._in_array = False
        self._element: list[bytes] = []
        self._num_elements = 0
        self.ends: list[int] = []
        """The offsets in the body at which the elements of the last `feed` end."""
        self._cuts: list[
            tuple[int, int]
        ] = []  # lengths of envelope and body where the envelope continues after an array

    @property
    def is_complete(self) -> bool:
        """True if every opened bracket is closed."""
        return self._in_object is not None and self._depth == 0 and not self._in_string

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take the next part of the body. Return the elements that end in it."""
        elements: list[bytes] = []
        self.ends = []
        start = 0
        for at, kind in self._boundaries(chunk):
            if kind == _ARRAY and not self._in_array:
                self.envelope += chunk[start : at + 1]
                self._in_array, self._num_elements, start = True, 0, at + 1
                self.num_arrays += 1
            elif self._in_array:
                ended = self._end_element(chunk[start:at], is_last=kind != _COMMA)
                self.ends += [self._num_bytes + at] * len(ended)
                elements += ended
                start = at + 1
                if kind != _COMMA:
                    self._in_array, start = False, at
                    self._cuts.append((len(self.envelope), self._num_bytes + at))
        if not self._in_array:
            self.envelope += chunk[start:]
        elif self._with_elements:
            self._element.append(chunk[start:])
        self._num_bytes += len(chunk)
        return elements

    def offset(self, line: int, column: int) -> int | None:
        """Return the offset in the body of a place in the envelope; None if no array before it was emptied."""
        before = self.envelope.split(b"\n")[: line - 1]
        place = sum(len(text) + 1 for text in before) + column - 1
        cuts = [*self._cuts, (len(self.envelope), self._num_bytes)] if self._in_array else self._cuts
        # At an unexpected end, a parser reports the place before the end.
        return next((there + place - here for here, there in reversed(cuts) if here <= place + 1), None)

    def _boundaries(self, chunk: bytes) -> Iterator[tuple[int, int]]:
        """Return offset and kind of the brackets and commas of the object's values, arrays and objects alike."""
        at, kinds, depth = self._tokens(chunk)
        if self._in_object is None and len(kinds):
            self._in_object = kinds[0] == ord("{")
        if not self._in_object:
            return iter(())
        step = _STEP[kinds]
        of_interest = ((depth == 2) & (step >= 0)) | ((depth == 1) & (step == -1))
        return zip(at[of_interest].tolist(), kinds[of_interest].tolist(), strict=True)

    def _tokens(self, chunk: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return offset and kind of each bracket (and comma) outside strings, and the nesting depth after it."""
        text = b"_" + chunk[1:] if self._escaped else chunk
        at, kinds, is_escaped = self._find(text)
        if (is_escaped & (kinds == _ESCAPE)).any():  # of a run of backslashes, pairs escape each other
            text = text.replace(b"\\\\", b"__")
            at, kinds, is_escaped = self._find(text)
        self._escaped = text.endswith(b"\\")
        plain = ~(is_escaped | (kinds == _ESCAPE))
        at, kinds = at[plain], kinds[plain]
        is_quote = kinds == _QUOTE
        inside = (np.cumsum(is_quote, dtype=np.int32) + self._in_string & 1).astype(bool)
        if len(inside):
            self._in_string = bool(inside[-1])
        outside = ~(inside | is_quote)
        at, kinds = at[outside], kinds[outside]
        depth = self._depth + np.cumsum(_STEP[kinds], dtype=np.int64)
        if len(depth):
            self._depth = int(depth[-1])
        return at, kinds, depth

    def _find(self, text: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return offset and kind of each byte that may be a token, and whether a backslash stands before it."""
        at = np.flatnonzero(np.frombuffer(text.translate(self._is_token), bool))
        kinds = np.frombuffer(text, np.uint8)[at]
        is_escaped = np.zeros(len(at), bool)
        is_escaped[1:] = (kinds[:-1] == _ESCAPE) & (np.diff(at) == 1)
        return at, kinds, is_escaped

    def _end_element(self, last_part: bytes, is_last: bool) -> list[bytes]:
        if not self._with_elements:
            return []
        element = b"".join((*self._element, last_part))
        self._element = []
        if is_last and not self._num_elements and not element.strip():
            return []  # an empty array
        self._num_elements += 1
        return [element]
