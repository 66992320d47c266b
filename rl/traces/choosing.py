"""Which groups of a job are traced, within the limits of the configuration."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from tandem.rl.packed_rows import PackedSequence
from tandem.rl.traces.sequences import TracedSequence

TOKEN_BYTES = 4
"""Of each token of a row, for its id."""
TRAINED_BYTES = 8
"""Of each trained token besides, for two logprobs."""
GOLDEN = 0.6180339887498949


def chosen_groups(
    sequences: Sequence[TracedSequence],
    rows: Sequence[PackedSequence],
    max_bytes: int,
    max_groups: int | None = None,
) -> tuple[set[int], Mapping[int, int]]:
    """Return the groups to trace, and the trained tokens of each other one.

    If not all fit, those that are chosen are spread evenly over the job, the same ones in every attempt.
    """
    sizes, trained = Counter[int](), Counter[int]()
    for row in rows:
        if row.group_ids is not None:
            counts = row.group_ids.bincount().tolist()
            sizes.update({group: TOKEN_BYTES * count for group, count in enumerate(counts) if count})
    for sequence in sequences:
        trained[sequence.group] += sequence.num_trained
        sizes[sequence.group] += TRAINED_BYTES * sequence.num_trained
    chosen, total = set[int](), 0
    limit = len(trained) if max_groups is None else max_groups
    for group in sorted(trained, key=lambda group: (group * GOLDEN % 1, group)):
        if len(chosen) < limit and total + sizes[group] <= max_bytes:
            chosen.add(group)
            total += sizes[group]
    return chosen, {group: number for group, number in trained.items() if group not in chosen}


def traced_row(row: PackedSequence, groups: set[int]) -> PackedSequence:
    """Return the row, of which only these groups are traced."""
    if row.trace_ids is None or row.group_ids is None:
        return row
    is_chosen = torch.isin(row.group_ids, torch.tensor(sorted(groups), dtype=torch.int32))
    if is_chosen.all():
        return row
    if not is_chosen.any():
        return replace(row, trace_ids=None, repeats=replace(row.repeats, trace_ids=None))
    own = torch.where(is_chosen, row.trace_ids, -1)
    if row.repeats.trace_ids is None:
        return replace(row, trace_ids=own)
    repeated = torch.where(is_chosen[row.repeats.indices], row.repeats.trace_ids, -1)
    return replace(row, trace_ids=own, repeats=replace(row.repeats, trace_ids=repeated))
