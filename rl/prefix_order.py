"""The order in which sequences share the most: depth-first through the tree of their common prefixes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


def prefix_order(token_ids: Sequence[Tensor], min_gain: int, num_common: int = 1) -> list[tuple[int, int]]:
    """Return (index, number of tokens shared with the sequence before it) of each sequence, in depth-first order.

    Sequences that leave another one late come before those that leave it early; those that leave it at the same place
    keep their order. A sequence that another one extends comes after that one, and shares all of its tokens.
    The order costs O(total tokens), but for comparisons of bytes while it looks up each sequence.

    Args:
        token_ids: [T] of each sequence.
        min_gain: a prefix is shared only as far as that saves at least this many tokens.
        num_common: tokens, at least 1, that every two sequences count as sharing at no gain.
    """
    nodes: list[_Node] = []
    known: list[bytes] = []  # of the nodes so far, sorted, so that those with the longest common prefix are neighbours
    of_known: list[_Node] = []
    for index, tokens in enumerate(token_ids):
        ids = tokens.numpy()
        key = ids.astype(">u4").tobytes()  # compares as the tokens do
        place = bisect_left(known, key)
        neighbours = of_known[max(place - 1, 0) : place + 1]
        node = _Node(index, ids, ((0, index),), None, num_common)
        if neighbours:
            shared, nearest = max(((_common(ids, n.ids), n) for n in neighbours), key=lambda found: found[0])
            node.leave(nearest, shared, min_gain)
        known.insert(place, key)
        of_known.insert(place, node)
        nodes.append(node)
    return [(node.index, node.shared) for node in sorted(nodes, key=lambda node: node.path)]


@dataclass(eq=False)
class _Node:
    """A sequence in the tree. It shares its first `shared` tokens with its parent and those before it in the order."""

    index: int
    ids: NDArray[np.int64]
    path: tuple[tuple[int, int], ...]
    """Sorts depth-first: for each node from the root, the tokens it shares, negated, and its index."""
    parent: _Node | None
    shared: int

    def leave(self, nearest: _Node, shared: int, min_gain: int) -> None:
        """Become a branch of the node that has token `shared` - 1 of `nearest` to itself, if sharing gains enough."""
        origin: _Node | None = nearest
        while origin is not None and shared - origin.shared < min_gain:
            shared, origin = min(shared, origin.shared), origin.parent
        if origin is None:
            return
        if shared == len(origin.ids) < len(self.ids):
            self.path, self.parent, self.shared = origin.path, origin.parent, origin.shared
            origin._branch_off(self, shared)
        else:
            self._branch_off(origin, shared)

    def _branch_off(self, parent: _Node, shared: int) -> None:
        self.path, self.parent, self.shared = (*parent.path, (-shared, self.index)), parent, shared


def _common(first: NDArray[np.int64], second: NDArray[np.int64]) -> int:
    """Return the length of the common prefix."""
    length = min(len(first), len(second))
    differs = first[:length] != second[:length]
    return int(differs.argmax()) if differs.any() else length
