"""How the rows of one call are shared among learners."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar


class _Row(Protocol):
    @property
    def num_tokens(self) -> int: ...


Row = TypeVar("Row", bound=_Row)


def shard_by_tokens(rows: Sequence[Row], num_shards: int) -> list[list[Row]]:
    """Split rows over learners so that the largest token count is small (longest first, to the lightest shard).

    Return exactly `num_shards` lists; some are empty when there are fewer rows. Deterministic.
    """
    shards: list[list[Row]] = [[] for _ in range(num_shards)]
    loads = [0] * num_shards
    for row in sorted(rows, key=lambda row: row.num_tokens, reverse=True):
        lightest = loads.index(min(loads))
        shards[lightest].append(row)
        loads[lightest] += row.num_tokens
    return shards
