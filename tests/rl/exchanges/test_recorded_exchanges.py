"""The trained tokens are those that openpipe-art 0.5.23 trains with its own code, recorded in exchange_vectors.json."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
from exchange_data import captured
from paths import DATA
from wire_data import chat_tokenizer

from tandem.rl.sampled_trajectories import sampled_trajectories
from tandem.rl.trajectories import TrajectoryGroup

CASES = json.loads((DATA / "exchange_vectors.json").read_text())["cases"]


def trained(sequences: Iterable[tuple[Sequence[int], Sequence[bool]]]) -> list[tuple[int, ...]]:
    """Return each trained token as the path to it. How turns are put into sequences makes no difference to these."""
    return sorted(
        tuple(ids[: index + 1]) for ids, mask in sequences for index, is_trained in enumerate(mask) if is_trained
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_the_trained_tokens_are_those_of_the_client(case: dict[str, Any]) -> None:
    group = TrajectoryGroup(trajectories=[captured(chat_completions=case["exchanges"])])
    [one] = sampled_trajectories(0, group, chat_tokenizer())
    sequences, _ = one.tokenize(chat_tokenizer(), False, (0, 0))
    found = trained((each.token_ids.tolist(), each.loss_mask.tolist()) for each in sequences)
    assert found == trained((each["token_ids"], each["trained"]) for each in case["sequences"])
    assert len(set(found)) == len(found)
    assert len(sequences) <= len(case["sequences"])  # the client leaves a duplicate's continuation apart
