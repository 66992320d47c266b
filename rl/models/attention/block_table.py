"""The table of blocks of a packed row: which queries meet which keys in attention by segments.

Each segment attends causally to itself, and fully to the tokens of each segment that it continues, in one block with
all segments that continue it in turn. A window cuts blocks: keys that no query of a block reaches are left out, those
that all reach stay as they are, and between them lies a band, which has a mask.

The mask of a band follows from one number, `distance`: the position of its first query minus that of its first key.
Query i sees key j if and only if 0 <= distance + i - j < window.

Shapes: T tokens, P blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, fields

import torch
from torch import Tensor

from tandem.rl.packed_rows import PackedSequence, segments_of

CAUSAL_TOKENS = 256


@dataclass(frozen=True)
class Block:
    """Queries [query_start, query_stop) see keys [key_start, key_stop): all of them, or causally as many."""

    query_start: int
    query_stop: int
    key_start: int
    key_stop: int
    is_causal: int
    distance: int = 0
    window: int = 0
    """0: none of the block's keys is too far from any of its queries."""

    @property
    def queries(self) -> slice:
        return slice(self.query_start, self.query_stop)

    @property
    def keys(self) -> slice:
        return slice(self.key_start, self.key_stop)

    def hidden(self) -> Tensor:
        """Return bool [queries, keys]: True where a block with a window hides the key."""
        queries = torch.arange(self.query_stop - self.query_start) + self.distance
        apart = queries[:, None] - torch.arange(self.key_stop - self.key_start)
        return (apart < 0) | (apart >= self.window)


def block_table(packed: PackedSequence, window: int | None = None) -> Tensor:
    """Return the blocks of a row, int64 [1, 1, P, 7]: the fields of `Block`.

    Four dimensions, so that transformers passes it to every layer as if it were a mask. A query's own segment comes
    first. Then comes, for each segment, one block of its parent's tokens that the segment and all that continue it
    see. Neighbours that leave their parent at the same place share a block. `window` is the number of positions that a
    token sees, itself included; None: all.
    """
    causal: list[Block] = []
    full: list[Block] = []
    of_parents: dict[tuple[int, int], list[int]] = {}  # by range of keys: begin and end of the segments that see it
    for segment in segments_of(packed):
        _split(segment.begin, segment.stop, causal, full)
        if segment.parent is not None and segment.num_seen > 0:
            begin = segment.parent.begin
            of_parents.setdefault((begin, begin + segment.num_seen), [segment.begin, 0])[1] = segment.end
    full += [Block(begin, end, *keys, is_causal=0) for keys, (begin, end) in of_parents.items()]
    if window is not None:
        positions = packed.positions.tolist()
        causal = [_causal(block.query_start, block.query_stop, block.key_start, window) for block in causal]
        full = [piece for block in full for piece in _within(block, positions, window)]
    return _table(causal + full)


def restrict(table: Tensor, rows: Tensor) -> Tensor:
    """Return the table of a row of which only the queries at the indices `rows` [R], sorted, are left, side by side.

    Keys are those of the whole row.
    """
    breaks = (rows.diff() > 1).nonzero().squeeze(1) + 1
    pieces = zip(rows.tensor_split(breaks), [0, *breaks.tolist()], strict=True)
    runs = [(int(piece[0]), int(piece[-1]) + 1, at) for piece, at in pieces]
    causal: list[Block] = []
    full: list[Block] = []
    for block in blocks_of(table):
        parts = [
            (max(start, block.query_start), min(stop, block.query_stop), at - start)
            for start, stop, at in runs
            if start < block.query_stop and block.query_start < stop
        ]
        for start, stop, shift in parts if block.is_causal else []:
            causal.append(_causal(start + shift, stop + shift, start, block.window))
            full += _band(start + shift, stop + shift, block.key_start, start, start - block.key_start, block.window)
        if block.is_causal or not parts:
            continue
        if not block.window:
            queries = parts[0][0] + parts[0][2], parts[-1][1] + parts[-1][2]
            full.append(Block(*queries, block.key_start, block.key_stop, is_causal=0))
            continue
        for start, stop, shift in parts:
            distance = block.distance + start - block.query_start
            full += _band(start + shift, stop + shift, block.key_start, block.key_stop, distance, block.window)
    return _table(causal + full)


def blocks_of(table: Tensor) -> list[Block]:
    """Return the blocks of a table."""
    return [Block(*bounds) for bounds in table[0, 0].tolist()]


def _table(blocks: Iterable[Block]) -> Tensor:
    rows = [astuple(block) for block in blocks]
    return torch.tensor(rows, dtype=torch.int64).reshape(1, 1, len(rows), len(fields(Block)))


def _split(start: int, stop: int, causal: list[Block], full: list[Block]) -> None:
    """Add the blocks of one segment. The kernel computes half of a causal block in vain, so long ones are halved."""
    if stop - start <= CAUSAL_TOKENS:
        causal.append(Block(start, stop, start, stop, is_causal=1))
        return
    middle = (start + stop) // 2
    _split(start, middle, causal, full)
    _split(middle, stop, causal, full)
    full.append(Block(middle, stop, start, middle, is_causal=0))


def _causal(start: int, stop: int, key_start: int, window: int) -> Block:
    """Return a causal block of as many keys as queries."""
    length = stop - start
    return Block(start, stop, key_start, key_start + length, 1, 0, window if 0 < window < length else 0)


def _within(block: Block, positions: list[int], window: int) -> Iterator[Block]:
    """Yield a full block cut by a window. Keys that all its queries reach stay in one block."""
    first, last = positions[block.key_start], max(positions[block.queries])
    near = block.key_start + max(0, last - window + 1 - first)
    if near < block.key_stop:
        yield Block(block.query_start, block.query_stop, near, block.key_stop, is_causal=0)
    far = min(near, block.key_stop)
    if block.key_start == far:
        return
    start = block.query_start
    for index in range(block.query_start + 1, block.query_stop + 1):
        goes_on = index < block.query_stop and positions[index] == positions[index - 1] + 1
        if not goes_on or index - start == CAUSAL_TOKENS:
            yield from _band(start, index, block.key_start, far, positions[start] - first, window)
            start = index


def _band(start: int, stop: int, key_start: int, key_stop: int, distance: int, window: int) -> Iterator[Block]:
    """Yield the blocks of queries [start, stop) and earlier keys, both with consecutive positions.

    Every query of a block sees one of its keys at least: a softmax over nothing has no value.
    """
    far, near = max(0, distance - window + 1), max(0, distance + stop - start - window)
    num_keys = key_stop - key_start
    if not window:
        far = near = 0
    if near < num_keys:
        yield Block(start, stop, key_start + near, key_stop, is_causal=0)
    near = min(near, num_keys)
    if far < near:
        reaching = near + window - 1 - distance
        yield Block(start, start + reaching, key_start + far, key_start + near, 0, distance - far, window)
