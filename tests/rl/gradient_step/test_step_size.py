"""Rows are taken into gradient steps by their number, by their trained tokens, or all together."""

from dataclasses import dataclass

import pytest

from tandem.cluster.config import LearnersConfig
from tandem.rl.gradient_step.size import StepSize


@dataclass(frozen=True)
class Row:
    num_trained_tokens: int


ROWS = [Row(n) for n in (30, 50, 20, 100, 10, 40, 5)]


@pytest.mark.parametrize(
    ("size", "steps"),
    [
        (StepSize(rows=1), [[30], [50], [20], [100], [10], [40], [5]]),
        (StepSize(rows=3), [[30, 50, 20], [100, 10, 40], [5]]),
        # 30 + 50 = 80 reach 80; 20 doesn't, 20 + 100 do; 10 + 40 + 5 never do.
        (StepSize(tokens=80), [[30, 50], [20, 100], [10, 40, 5]]),
        (StepSize(tokens=81), [[30, 50, 20], [100], [10, 40, 5]]),
        (StepSize(tokens=1), [[30], [50], [20], [100], [10], [40], [5]]),
        (StepSize(tokens=10**9), [[30, 50, 20, 100, 10, 40, 5]]),
        (StepSize(), [[30, 50, 20, 100, 10, 40, 5]]),
    ],
    ids=str,
)
def test_rows_are_grouped_in_order(size: StepSize, steps: list[list[int]]) -> None:
    assert [[row.num_trained_tokens for row in step] for step in size.split(ROWS)] == steps
    assert size.split([]) == []


def test_the_configuration_names_the_size_and_learners_change_it_only_by_default() -> None:
    def size(count: int, **settings: object) -> StepSize:
        return LearnersConfig.model_validate({"count": count, **settings}).step_size

    assert size(1) == StepSize(rows=1)
    assert size(4) == StepSize(rows=4)
    assert size(4, sequences_per_step=3) == StepSize(rows=3)
    assert size(1, tokens_per_step=4096) == size(4, tokens_per_step=4096) == StepSize(tokens=4096)
    assert size(1, tokens_per_step="job") == size(4, tokens_per_step="job") == StepSize()
