"""Learning rates worked out by hand."""

from types import SimpleNamespace

import pytest

from tandem.rl.config import TrainingConfig
from tandem.rl.gradient_step.learning_rate import reward_spread_trend, step_learning_rate


def rows(*num_completions):
    return [SimpleNamespace(num_completions=num) for num in num_completions]


def test_without_options_the_base_rate_stays():
    assert step_learning_rate(2e-5, TrainingConfig(), rows(3, 5), (0.5, 0.1)) == 2e-5


@pytest.mark.parametrize(
    ("power", "num_completions", "factor"),
    [
        (0.0, (4,), 1),
        (1.0, (4,), 4),
        (0.5, (9,), 3),
        (-0.5, (16,), 1 / 4),
        (0.5, (2, 6), 2),  # 4 on average
        (1.0, (0,), 1),  # zero completions count as one
    ],
)
def test_more_completions_in_a_row_scale_the_rate(power, num_completions, factor):
    config = TrainingConfig(num_trajectories_learning_rate_multiplier_power=power)
    assert step_learning_rate(1e-4, config, rows(*num_completions), ()) == pytest.approx(1e-4 * factor)


@pytest.mark.parametrize(
    ("history", "factor"),
    [
        ((), 1),
        ((0.3,), 1),
        ((0.4, 0.3), 0.75),  # b = 0.4, m = -0.1
        ((0.4, 0.3, 0.2), 0.5),  # b = 0.4, m = -0.1
        ((0.2, 0.4), 2),  # a growing spread raises the rate
        ((0.4, 0.1, 0.4), 1),  # a flat line at 0.3
        ((0.0, 0.0, 0.3), 1),  # b = -0.05
        ((0.0, 0.0), 1),  # b = 0
        ((0.9, 0.0, 0.0), 0),  # b = 0.75, m = -0.45: the line ends at -0.15
    ],
)
def test_the_trend_of_the_reward_spread(history, factor):
    assert reward_spread_trend(history) == pytest.approx(factor)
    config = TrainingConfig(scale_learning_rate_by_reward_std_dev=True)
    assert step_learning_rate(1e-4, config, rows(1), history) == pytest.approx(1e-4 * factor)


def test_both_scales_multiply():
    config = TrainingConfig(
        num_trajectories_learning_rate_multiplier_power=0.5, scale_learning_rate_by_reward_std_dev=True
    )
    assert step_learning_rate(1e-4, config, rows(4), (0.4, 0.3)) == pytest.approx(1e-4 * 2 * 0.75)
