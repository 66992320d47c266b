import math

import pytest

from tandem.rl.advantages import balance_and_normalize, group_advantages, trajectory_weight


def test_advantages_are_deviations_in_units_of_the_population_std_dev():
    # mean 2, deviations -1, -1, 2, population variance (1 + 1 + 4) / 3 = 2
    unit = math.sqrt(2) + 1e-6
    assert group_advantages([1, 1, 4], scale_rewards=True) == pytest.approx([-1 / unit, -1 / unit, 2 / unit], abs=1e-12)
    assert group_advantages([1, 1, 4], scale_rewards=False) == [-1, -1, 2]


@pytest.mark.parametrize("rewards", [[], [0.7], [0.1, 0.1, 0.1], [1e30, 1e30]])
@pytest.mark.parametrize("scale_rewards", [True, False])
def test_equal_rewards_say_nothing(rewards, scale_rewards):
    assert group_advantages(rewards, scale_rewards) == [0.0] * len(rewards)


def test_the_largest_rewards_stay_finite():
    assert group_advantages([-1e30, 1e30], scale_rewards=True) == [-1, 1]


def test_trajectories_weigh_alike():
    assert trajectory_weight(4) * 4 == pytest.approx(trajectory_weight(100) * 100, abs=1e-6)


def test_normalisation_by_hand():
    # 1 token with w = 1 and 2 tokens with w = 1/2: mean w = 2/3, so w = 3/2 and 3/4.
    # |A| w over the 3 tokens: 2 * 3/2 + 2 * (1 * 3/4) = 4.5, mean 1.5.
    advantages, weights = balance_and_normalize([2.0, -1.0], [1.0, 0.5], [1, 2], balance=0.0)
    assert weights == pytest.approx([1.5, 0.75])
    assert advantages == pytest.approx([2 / 1.5, -1 / 1.5])


@pytest.mark.parametrize(("balance", "positive", "negative"), [(0.5, 1, 0.5), (-0.25, 0.75, 1), (1, 1, 0), (-1, 0, 1)])
def test_balance_shrinks_one_side(balance, positive, negative):
    advantages, weights = balance_and_normalize([1.0, -1.0], [1.0, 1.0], [3, 3], balance)
    mean = (positive + negative) / 2
    assert advantages == pytest.approx([positive / mean, -negative / mean])
    assert weights == [1.0, 1.0]


def test_nothing_left_is_none_not_nan():
    assert balance_and_normalize([-1.0, -2.0], [1.0, 1.0], [2, 2], balance=1.0) is None
    assert balance_and_normalize([], [], [], balance=0.0) is None
