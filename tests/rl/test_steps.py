"""The loop of a training job: its steps in order, with the rows, rates and logprobs that the options require."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import packed_group

from tandem.rl.config import LossConfig, TrainingConfig
from tandem.rl.errors import StepError
from tandem.rl.gradient_step.size import StepSize
from tandem.rl.learner import Learner
from tandem.rl.packing import PackedSequence
from tandem.rl.policy import Policy
from tandem.rl.steps import Learners, fill_logprobs, gradient_steps


class Recorder:
    """Learners that record their steps."""

    def __init__(self, step_size: StepSize = StepSize(rows=1)):
        self.step_size = step_size
        self.steps: list[tuple[list[PackedSequence], LossConfig, float, int]] = []

    def step(
        self, sequences: Sequence[PackedSequence], loss: LossConfig, learning_rate: float, logprob_chunk_size: int
    ) -> dict[str, float]:
        self.steps.append((list(sequences), loss, learning_rate, logprob_chunk_size))
        return {"step": float(len(self.steps))}


@pytest.fixture
def rows() -> list[PackedSequence]:
    return [packed_group(6, [4, 5], seed) for seed in range(5)]


def versions_of(row: PackedSequence, *versions: int) -> PackedSequence:
    """Return the row with these versions as the samplers of its completions, in order."""
    segments = row.segment_ids.clamp(max=len(versions) - 1)
    return replace(row, policy_versions=torch.tensor(versions)[segments])


def test_every_row_is_trained_once_in_order(rows: list[PackedSequence]) -> None:
    learners = Recorder(StepSize(rows=2))
    config = TrainingConfig(loss_fn="ppo", logprob_calculation_chunk_size=7)
    metrics = list(gradient_steps(learners, rows, config, learning_rate=0.5, version=3))
    assert metrics == [{"step": 1.0}, {"step": 2.0}, {"step": 3.0}]
    assert [[id(row) for row in step[0]] for step in learners.steps] == [
        [id(row) for row in of_step] for of_step in (rows[:2], rows[2:4], rows[4:])
    ]
    assert {(step[1].loss_fn, *step[2:]) for step in learners.steps} == {("ppo", 0.5, 7)}


def test_a_consumer_that_stops_ends_the_training(rows: list[PackedSequence]) -> None:
    learners = Recorder()
    for _ in gradient_steps(learners, rows, TrainingConfig(), 0.5, 0):
        break
    assert len(learners.steps) == 1


def test_tokens_of_the_starting_version_are_fresh_in_the_first_step_only(rows: list[PackedSequence]) -> None:
    learners = Recorder()
    rows = [versions_of(row, 2, 3) for row in rows[:2]]
    list(gradient_steps(learners, rows, TrainingConfig(), 0.5, version=3))
    (first, *_), (second, *_) = learners.steps
    assert first[0].is_fresh is not None and first[0].is_fresh.tolist() == (rows[0].policy_versions == 3).tolist()
    assert first[0].is_fresh.any() and not first[0].is_fresh.all()
    assert second[0].is_fresh is None


def test_the_options_scale_the_rate_of_each_step(rows: list[PackedSequence]) -> None:
    learners = Recorder()
    config = TrainingConfig(
        num_trajectories_learning_rate_multiplier_power=1.0, scale_learning_rate_by_reward_std_dev=True
    )
    rows = [packed_group(6, [4, 5]), packed_group(6, [4, 5, 6])]
    list(gradient_steps(learners, rows, config, 0.1, 0, reward_std_devs=(0.4, 0.2)))
    # The number of completions times the trend of the spread, which has halved.
    assert [step[2] for step in learners.steps] == pytest.approx([0.1 * 2 * 0.5, 0.1 * 3 * 0.5])


@pytest.mark.parametrize(
    ("options", "reference", "scored", "old", "ref"),
    [
        ({}, None, [], None, None),
        ({"precalculate_logprobs": True}, None, ["now"], -1.0, None),
        ({"kl_penalty_coef": 0.1}, "base", ["base"], None, -2.0),
        ({"kl_penalty_coef": 0.1, "precalculate_logprobs": True}, "base", ["now", "base"], -1.0, -2.0),
        ({"kl_penalty_coef": 0.1, "precalculate_logprobs": True}, "now", ["now"], -1.0, -1.0),
    ],
)
def test_only_the_wanted_logprobs_are_filled_in(
    rows: list[PackedSequence], options: dict[str, float], reference: str | None, scored: list[str],
    old: float | None, ref: float | None,
) -> None:  # fmt: skip
    asked = []

    def score(version: str, rows: Sequence[PackedSequence]) -> list[torch.Tensor]:
        asked.append(version)
        return [torch.full((row.num_tokens,), {"now": -1.0, "base": -2.0}[version]) for row in rows]

    filled = fill_logprobs(rows, TrainingConfig(**options), score, "now", reference)
    assert asked == scored
    for row, before in zip(filled, rows, strict=True):
        for found, wanted in ((row.old_logprobs, old), (row.ref_logprobs, ref)):
            assert found is None if wanted is None else set(found.tolist()) == {wanted}
        assert row.sampling_logprobs is before.sampling_logprobs


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("options", "words"),
    [({"precalculate_logprobs": True}, "starts from"), ({"kl_penalty_coef": 0.1}, "KL reference")],
)
def test_a_destroyed_version_is_named_where_its_logprobs_are_needed(
    rows: list[PackedSequence], options: dict[str, Any], words: str, value: float
) -> None:
    def score(_: str, rows: Sequence[PackedSequence]) -> list[torch.Tensor]:
        """Untrained tokens may have no logprob."""
        scored = [torch.where(row.loss_mask, -1.0, float("nan")) for row in rows]
        scored[-1][rows[-1].loss_mask.nonzero()[-1]] = value
        return scored

    with pytest.raises(StepError, match=words):
        fill_logprobs(rows, TrainingConfig(**options), score, "now", "reference")


def test_a_penalty_without_a_reference_is_an_error(rows: list[PackedSequence]) -> None:
    with pytest.raises(ValueError, match="reference"):
        fill_logprobs(rows, TrainingConfig(kl_penalty_coef=0.1), lambda version, rows: [], "now")


def test_a_lone_learner_takes_the_steps(qwen3_path: Path, rows: list[PackedSequence]) -> None:
    learner: Learners = Learner(Policy.load(qwen3_path, "cpu"))
    found = list(gradient_steps(learner, rows[:2], TrainingConfig(), 0.01, 0))
    by_hand = Learner(Policy.load(qwen3_path, "cpu"))
    assert found == [by_hand.step([row], LossConfig(), 0.01) for row in rows[:2]]
    assert found[0]["loss/grad_norm"] > 0
    state, expected = learner.state(), by_hand.state()
    assert all(torch.equal(state.adapter[name], expected.adapter[name]) for name in expected.adapter)


def test_a_step_of_many_rows_holds_the_activations_of_one(qwen3_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that autograd has saved, at the peak of a job that is one step."""
    learner = Learner(Policy.load(qwen3_path, "cpu"))
    monkeypatch.setattr(learner, "step_size", StepSize())
    live = peak = 0

    class Saved:
        def __init__(self, tensor: torch.Tensor):
            nonlocal live, peak
            self.tensor = tensor
            live += tensor.nbytes
            peak = max(peak, live)

        def __del__(self) -> None:
            nonlocal live
            live -= self.tensor.nbytes

    peaks = []
    for number in (1, 5):
        same = [packed_group(6, [4, 5]) for _ in range(number)]
        peak = 0
        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
            [metrics] = gradient_steps(learner, same, TrainingConfig(), 0.01, 0)
        assert metrics["data/step_num_sequences"] == number
        peaks.append(peak)
    assert 1e5 < peaks[1] < 1.1 * peaks[0]


def test_another_version_is_scored_without_disturbing_the_one_in_training(
    qwen3_path: Path, rows: list[PackedSequence]
) -> None:
    learner = Learner(Policy.load(qwen3_path, "cpu"))
    base, before = learner.policy.adapter_state(), learner.score(rows[:1])
    for _ in range(3):
        learner.step(rows[:2], LossConfig(), 0.05)
    trained = learner.policy.adapter_state()
    torch.testing.assert_close(learner.score(rows[:1], adapter=base), before, rtol=0, atol=0, equal_nan=True)
    now = learner.policy.adapter_state()
    assert all(torch.equal(now[name], trained[name]) for name in trained)
    assert not torch.equal(learner.score(rows[:1])[0].nan_to_num(), before[0].nan_to_num())
