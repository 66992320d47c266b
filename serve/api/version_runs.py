"""A long line of versions in few items: versions that someone looks for, and runs of those between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tandem.serve.store.policies.tree import Node

NEWEST_SHOWN = 5
SHORTEST_RUN = 3
"""Fewer versions than this are shown one by one."""


def best_step(nodes: Sequence[Node]) -> int | None:
    """Return the live version with the highest reward, the first of several; None without rewards."""
    rewards = [(node.reward, -node.step) for node in nodes if node.state == "live" and node.reward is not None]
    return -max(rewards)[1] if rewards else None


def collapsed(nodes: Sequence[Node]) -> list[Sequence[Node]]:
    """Return the nodes, by step, in groups: one of a single node for each that stands out, and runs.

    The nodes of a run follow each other and have the same state.
    """
    shown = _shown(nodes)
    groups: list[list[Node]] = []
    for node in nodes:
        last = groups[-1][-1] if groups else None
        continues = (
            last is not None
            and node.step not in shown
            and last.step not in shown
            and node.state == last.state
            and node.parent is not None
            and node.parent.path is None
            and node.parent.step == last.step
        )
        if continues:
            groups[-1].append(node)
        else:
            groups.append([node])
    split: list[Sequence[Node]] = []
    for group in groups:
        split += [group] if len(group) >= SHORTEST_RUN else [[node] for node in group]
    return split


def _shown(nodes: Sequence[Node]) -> set[int]:
    """Return the steps that are never part of a run."""
    children = Counter(node.parent.step for node in nodes if node.parent and node.parent.path is None)
    live = [node.step for node in nodes if node.state == "live"]
    stand_out = {
        node.step
        for node in nodes
        if node.step == 0 or node.forks or _is_special(node) or node.kept_at is not None or children[node.step] > 1
    }
    return stand_out | set(live[-NEWEST_SHOWN:]) | {step for step in (best_step(nodes),) if step is not None}


def _is_special(node: Node) -> bool:
    """Return whether the version was imported or forked, or has a name. A run makes one for every few of its steps."""
    return node.origin is not None and (node.run_id is None or node.checkpoint_name is not None)
