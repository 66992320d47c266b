"""The figures of the benchmarks that start engines of their own."""

import pytest
import torch
from engine_stats import CLIENTS, CONTENDERS, REQUESTS, TOKENS, summary
from logprob_sharing import MODES, group_row, plot, summarize

from tandem.rl.packing import unpack


def test_the_cost_of_statistics_is_that_beyond_none():
    """By round 100, 120 and 140 ms without any: the service's add 10, 20 and 30, vLLM's 100 each."""
    off = [100.0, 120.0, 140.0]
    cpu_ms = {"off": off, "tandem": [110.0, 140.0, 170.0], "vllm": [ms + 100 for ms in off]}
    found = summary(cpu_ms, {name: [2.0, 2.0, 2.0] for name in CONTENDERS})
    tokens = REQUESTS * TOKENS
    assert (found["rounds"], found["clients"]) == (3, CLIENTS)
    assert found["off"]["more_us_per_token"] == 0
    assert found["tandem"]["more_us_per_token"] == pytest.approx(20_000 / tokens)
    assert found["tandem"]["more_us_per_token_quartiles"] == pytest.approx([10_000 / tokens, 30_000 / tokens])
    assert found["vllm"]["more_cpu_percent"] == pytest.approx(100 * 100 / 120)
    assert found["tandem"]["tokens_per_s"] == tokens / 2


def test_completions_of_a_group_share_their_prompt():
    row = group_row(prompt=5, completion=3, completions=2, seed=0)
    assert len(row.token_ids) == 5 + 2 * 3
    assert [len(indices) for indices in unpack(row)] == [5 + 3, 5 + 3]
    assert int(row.loss_mask.sum()) == 2 * 2  # a completion's first token has no predecessor in its segment
    assert torch.equal(group_row(5, 3, 2, 0).token_ids, row.token_ids)


def test_modes_of_scoring_are_compared_with_the_learner(tmp_path):
    seconds = {"learner": [4.0, 6.0, 5.0], "engine": [10.0] * 3, "shared": [2.0, 2.5, 3.0]}
    records = [
        {"batch": "grouped", "mode": mode, "repeat": repeat, "seconds": taken, "logprobs/engine_share": 0.5}
        for mode in MODES
        for repeat, taken in enumerate(seconds[mode])
    ]
    rows = {row["mode"]: row for row in summarize(records)}
    assert {mode: row["speed_over_learner"] for mode, row in rows.items()} == {"learner": 1, "engine": 0.5, "shared": 2}
    assert rows["shared"]["engine_share"] == 0.5
    plot(records, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 0
