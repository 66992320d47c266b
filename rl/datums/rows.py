"""Datums in packed rows, in which a common prefix of several datums is computed once.

A position's target needn't be the next token of the row, so a datum that leaves another one begins its segment with
its first own token: nothing is computed twice, and a datum that is the beginning of another one adds no token at all.

Shapes: T tokens of a row, M targets of its datums. A position with K targets counts K times.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import repeat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tandem.rl.datums.datum import Datum
from tandem.rl.packed_rows import PackedSequence
from tandem.rl.prefix_order import prefix_order

MIN_GAIN = 16
"""Tokens that a datum must save to leave another one: each branch costs further blocks of attention."""


@dataclass(frozen=True)
class DatumRow:
    """A packed row of whole datums, and what the loss needs of them, one datum after the other."""

    row: PackedSequence
    datums: tuple[int, ...]
    """The indices of its datums in the call."""
    shapes: tuple[tuple[int, ...], ...]
    """Of the targets of each datum: (N,) or (N, K)."""
    datum_ids: Tensor
    """int64 [M]. The datum of each target: an index into `datums`."""
    places: Tensor
    """int64 [M]. The index in the row of the token after which a target is predicted."""
    targets: Tensor
    """int64 [M]."""
    values: Mapping[str, Tensor]
    """float32 [M]: the other inputs of the loss, by their names. NaN for a datum that leaves an optional one out."""

    @property
    def num_tokens(self) -> int:
        return self.row.num_tokens

    @property
    def longest(self) -> int:
        """The tokens of the longest datum: no row that has it can be shorter."""
        return max(shape[0] for shape in self.shapes)

    def unpacked(self) -> list[Datum]:
        """Return the datums, in the order of `datums`."""
        lengths = [torch.Size(shape).numel() for shape in self.shapes]
        parts = [column.split(lengths) for column in (self.places, self.targets, *self.values.values())]
        found = []
        for shape, places, targets, *values in zip(self.shapes, *parts, strict=True):
            named = {name: own.view(shape) for name, own in zip(self.values, values, strict=True)}
            token_ids = self.row.token_ids[places.view(shape[0], -1)[:, 0]]
            found.append(Datum(token_ids, targets.view(shape), named))
        return found


def pack_datums(datums: Sequence[Datum], packed_length: int, shares_prefixes: bool) -> list[DatumRow]:
    """Fill rows of at most `packed_length` tokens with datums; one that is longer has a row of its own.

    The rows are the same for the same datums, whoever computes them.

    Args:
        datums: those of a call, checked.
        packed_length: tokens.
        shares_prefixes: False for models with recurrent layers: every datum is then one segment, whole.
    """
    return _pack(datums, range(len(datums)), packed_length, shares_prefixes)


def split_datums(row: DatumRow, packed_length: int, shares_prefixes: bool) -> list[DatumRow]:
    """Return the datums of a row in rows of at most `packed_length` tokens, or of the longest one's where it has more.

    Such a row has no other datum but those that begin the longest one.
    """
    if row.num_tokens <= max(packed_length, row.longest):
        return [row]
    return _pack(row.unpacked(), row.datums, packed_length, shares_prefixes)


def _pack(datums: Sequence[Datum], numbers: Sequence[int], packed_length: int, shares: bool) -> list[DatumRow]:
    rows = [_Row()]
    for index, num_shared in _ordered(datums, shares):
        datum = datums[index]
        added = rows[-1].num_added(datum, num_shared)
        if rows[-1].datums and added and rows[-1].num_tokens + added > packed_length:
            rows.append(_Row())
        rows[-1].add(datum, numbers[index], num_shared)
    return [row.packed() for row in rows if row.datums]


def _ordered(datums: Sequence[Datum], shares_prefixes: bool) -> Iterator[tuple[int, int]]:
    """Yield the index of each datum, and the number of tokens that it shares with the one before it."""
    if not shares_prefixes:
        yield from zip(range(len(datums)), repeat(0))
        return
    for index, num_shared in prefix_order([datum.token_ids for datum in datums], MIN_GAIN):
        yield index, num_shared if num_shared > 1 else 0  # any two count there as sharing the first


@dataclass(frozen=True)
class _Segment:
    """Tokens of a datum from position `start` on, in the row from token `begin` on. `parent` is its parent's id."""

    token_ids: Tensor
    start: int
    begin: int
    parent: int


class _Row:
    """A row while it is filled, depth-first."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self.datums: list[tuple[int, Datum]] = []
        self._segments: list[_Segment] = []
        self._path: list[int] = []
        """The segments of the last datum, from its root on."""
        self._ranges: list[tuple[int, int, int]] = []
        """(first place, number of places, targets of each) of the parts of each datum, one after the other."""

    def num_added(self, datum: Datum, num_shared: int) -> int:
        """Return the tokens that a datum would add, which shares its first `num_shared` ones with the last."""
        return datum.num_tokens - (num_shared if self._path else 0)

    def add(self, datum: Datum, number: int, num_shared: int) -> None:
        """Add a datum of this number in the call, which shares its first `num_shared` tokens with the last one."""
        self._path = [id_ for id_ in self._path if self._segments[id_].start < num_shared]
        start = num_shared if self._path else 0
        if start < datum.num_tokens:
            id_ = len(self._segments)
            parent = self._path[-1] if self._path else id_
            self._segments.append(_Segment(datum.token_ids[start:], start, self.num_tokens, parent))
            self._path.append(id_)
            self.num_tokens += datum.num_tokens - start
        num_targets = datum.targets.numel() // datum.num_tokens
        path = [self._segments[id_] for id_ in self._path]
        for segment, end in zip(path, [*(after.start for after in path[1:]), datum.num_tokens], strict=True):
            self._ranges.append((segment.begin, end - segment.start, num_targets))
        self.datums.append((number, datum))

    def packed(self) -> DatumRow:
        """Return the finished row."""
        numbers, datums = zip(*self.datums, strict=True)
        lengths = [datum.targets.numel() for datum in datums]
        names = sorted({name for datum in datums for name in datum.values})
        begins, sizes, num_targets = np.array(self._ranges).T
        return DatumRow(
            row=self._row(),
            datums=numbers,
            shapes=tuple(tuple(datum.targets.shape) for datum in datums),
            datum_ids=torch.from_numpy(np.arange(len(datums)).repeat(lengths)),
            places=torch.from_numpy(_joined(begins, sizes).repeat(num_targets.repeat(sizes))),
            targets=torch.cat([datum.targets.flatten() for datum in datums]),
            values={name: torch.cat([_column(datum, name) for datum in datums]) for name in names},
        )

    def _row(self) -> PackedSequence:
        starts, parents = np.array([(segment.start, segment.parent) for segment in self._segments]).T
        lengths = np.array([segment.token_ids.numel() for segment in self._segments])
        zeros = torch.zeros(self.num_tokens)
        return PackedSequence(
            token_ids=torch.cat([segment.token_ids for segment in self._segments]),
            positions=torch.from_numpy(_joined(starts, lengths)),
            segment_ids=torch.from_numpy(np.arange(len(lengths)).repeat(lengths)),
            parent_ids=torch.from_numpy(parents.repeat(lengths)),
            loss_mask=zeros.bool(),
            sampling_logprobs=zeros,
            advantages=zeros,
            weights=zeros,
        )


def _joined(begins: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return begin, begin + 1, ... of each range, one range after the other."""
    ends = lengths.cumsum()
    joined: NDArray[np.int64] = np.arange(ends[-1]) + (begins - ends + lengths).repeat(lengths)
    return joined


def _column(datum: Datum, name: str) -> Tensor:
    values = datum.values.get(name)
    return torch.full((datum.targets.numel(),), float("nan")) if values is None else values.flatten().float()


def moved(row: DatumRow, device: torch.device | str) -> DatumRow:
    """Return the row with every tensor on `device`."""
    columns = {name: getattr(row, name).to(device) for name in ("row", "datum_ids", "places", "targets")}
    return replace(row, **columns, values={name: values.to(device) for name, values in row.values.items()})
