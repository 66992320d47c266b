"""Training that destroys the policy fails with its likely cause, and the learner then trains on from a good version."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_models import packed_group, randomise_adapter

from tandem.rl.checkpoints import LearnerState
from tandem.rl.config import LossConfig
from tandem.rl.errors import StepError
from tandem.rl.learner import Learner
from tandem.rl.policy import Policy

ROW = packed_group(11, [9, 14])


@pytest.fixture
def learner(qwen3_path: Path) -> Learner:
    policy = Policy.load(qwen3_path, "cpu")
    randomise_adapter(policy)
    return Learner(policy)


def with_weights(state: LearnerState, value: float) -> LearnerState:
    return replace(state, adapter={name: torch.full_like(weight, value) for name, weight in state.adapter.items()})


@pytest.mark.parametrize("learning_rate", [1e10, 1e20, 1e30])
def test_a_single_step_that_destroys_the_policy_is_found_afterwards(learner: Learner, learning_rate: float) -> None:
    before = learner.state()
    learner.check_finite()
    learner.step([ROW], LossConfig(), learning_rate)
    with pytest.raises(StepError) as caught:
        learner.check_finite()
    assert f"learning_rate ({learning_rate:g})" in str(caught.value)
    learner.load_state(before)
    learner.check_finite()
    assert learner.step([ROW], LossConfig(), 1e-4)["data/step_trainer_tokens"] > 0


def test_the_next_step_names_the_one_that_destroyed_the_policy(learner: Learner) -> None:
    learner.step([ROW], LossConfig(), 1e-4)
    learner.step([ROW], LossConfig(), 1e10)
    with pytest.raises(StepError, match="gradient step 2") as caught:
        learner.step([ROW], LossConfig(), 1e-4)
    assert "learning_rate" in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e20, 1e38])
def test_a_version_that_was_destroyed_before_is_named_as_the_cause(learner: Learner, value: float) -> None:
    learner.load_state(with_weights(learner.state(), value))
    for check in (learner.check_finite, lambda: learner.step([ROW], LossConfig(), 1e-4)):
        with pytest.raises(StepError, match="Delete"):
            check()


@pytest.mark.parametrize("moment", ["exp_avg", "exp_avg_sq"])
def test_moments_that_are_not_finite_are_found(learner: Learner, moment: str) -> None:
    learner.step([ROW], LossConfig(), 1e-4)
    state = learner.state()
    name = next(name for name in state.optimizer if name.endswith(moment))
    learner.load_state(replace(state, optimizer=state.optimizer | {name: state.optimizer[name] * float("inf")}))
    with pytest.raises(StepError, match="optimizer"):
        learner.check_finite()


@pytest.mark.parametrize("size", [1e15, 1e25, 1e30])
def test_advantages_of_any_finite_size_are_clipped_and_train(learner: Learner, size: float) -> None:
    """The squares of such gradients overflow float32, the gradients don't."""
    metrics = learner.step([replace(ROW, advantages=ROW.advantages * size)], LossConfig(), 1e-4)
    assert metrics["loss/grad_norm"] > size / 1e6
    learner.check_finite()


def test_a_loss_that_is_not_finite_ends_the_step_though_its_gradient_is(learner: Learner) -> None:
    """PPO's clipped branch has no gradient, so an infinite advantage there leaves no trace in it."""
    before = learner.state()
    far = replace(
        ROW,
        sampling_logprobs=torch.full_like(ROW.sampling_logprobs, -50.0),
        advantages=torch.full_like(ROW.advantages, float("inf")),
    )
    with pytest.raises(StepError, match="Importance ratios"):
        learner.step([far], LossConfig(loss_fn="ppo", epsilon=0.2, epsilon_high=0.2), 1e-4)
    assert all(torch.equal(weight, learner.state().adapter[name]) for name, weight in before.adapter.items())
