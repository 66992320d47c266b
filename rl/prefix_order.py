"""The order in which sequences share the most: depth-first through the tree of their common prefixes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def prefix_order(token_ids: Sequence[Tensor], min_gain: int) -> list[tuple[int, int]]:
    """Return (index, number of tokens shared with the sequence before it) of each sequence, in depth-first order.

    Sequences that leave another one late come before those that leave it early; those that leave it at the same place
    keep their order. A sequence that another one extends comes after that one and shares all of its tokens. Apart
    from that, a sequence leaves another one only where this saves at least `min_gain` tokens. The last shared token
    has to be computed again, so sharing n tokens saves n - 1, and any two sequences count as sharing the first.

    The work is a pass over all tokens, and a binary search with comparisons of bytes for each sequence.

    Args:
        token_ids: [T] of each sequence.
        min_gain: tokens, at least 1.
    """
    known: list[bytes] = []  # sorted, so that the longest common prefix is that with a neighbour
    nodes: list[_Node] = []  # in the order of `known`
    for index, tokens in enumerate(token_ids):
        ids = tokens.numpy()
        node = _Node(index, ids, ((0, index),), None, 1)
        key = ids.astype(">u4").tobytes()  # bytes compare as the tokens do
        place = bisect_left(known, key)
        neighbours = [(common_length(ids, other.ids), other) for other in nodes[max(place - 1, 0) : place + 1]]
        if neighbours:
            num_equal, nearest = max(neighbours, key=lambda pair: pair[0])
            node.join(nearest, num_equal, min_gain)
        known.insert(place, key)
        nodes.insert(place, node)
    return [(node.index, node.shared) for node in sorted(nodes, key=lambda node: node.path)]


@dataclass(eq=False)
class _Node:
    """A sequence in the tree. It leaves its parent after `shared` tokens, the last of which isn't its parent's copy."""

    index: int
    ids: NDArray[np.int64]
    path: tuple[tuple[int, int], ...]
    """Sorts depth-first: the tokens shared, negated, and the index of each node from the root on."""
    parent: _Node | None
    shared: int

    def join(self, nearest: _Node, num_equal: int, min_gain: int) -> None:
        """Take the place in the tree of a sequence that begins with `num_equal` tokens of another one."""
        origin, shared = nearest._origin(num_equal, min_gain=1)
        if origin is not None and shared == len(origin.ids) < len(self.ids):
            self.path, self.parent, self.shared = origin.path, origin.parent, origin.shared
            origin._leave(self, shared)
            return
        if shared < len(self.ids) or origin is None or len(self.ids) == len(origin.ids):
            origin, shared = nearest._origin(num_equal, min_gain)
        if origin is not None:
            self._leave(origin, shared)

    def _origin(self, num_equal: int, min_gain: int) -> tuple[_Node | None, int]:
        """Return the node to leave, this one or one above it, and after how many tokens; None at the root."""
        origin: _Node | None = self
        while origin is not None and num_equal - origin.shared < min_gain:
            num_equal, origin = min(num_equal, origin.shared), origin.parent
        return origin, num_equal

    def _leave(self, parent: _Node, shared: int) -> None:
        self.path, self.parent, self.shared = (*parent.path, (-shared, self.index)), parent, shared


def common_length(first: NDArray[np.int64], second: NDArray[np.int64]) -> int:
    """Return the length of the common prefix."""
    length = min(len(first), len(second))
    differs = first[:length] != second[:length]
    return int(differs.argmax()) if differs.any() else length
