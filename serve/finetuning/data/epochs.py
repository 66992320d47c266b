"""The order of rows over the epochs of a job."""

from __future__ import annotations

import random
from collections.abc import Sequence


def epoch_order(num_rows: int, seed: int, epoch: int) -> Sequence[int]:
    """Return the rows of an epoch, counted from 0, in their order: a permutation for each."""
    order = list(range(num_rows))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return order


def batches(num_rows: int, size: int, num_epochs: int) -> list[tuple[int, int, int]]:
    """Return epoch, begin and end of each batch, which never spans two epochs. The last of an epoch may be smaller."""
    return [
        (epoch, begin, min(begin + size, num_rows)) for epoch in range(num_epochs) for begin in range(0, num_rows, size)
    ]
