"""Reward collapse, with numbers worked out by hand."""

import random

import pytest

from tandem.serve.alerts.collapse import Collapse, find_collapse


def test_a_fall_below_the_share_of_the_best_is_a_collapse():
    # Means of two: 0.2 0.5 0.8 0.8 0.45 0.1; those whose windows end before the last one's begins: up to the fourth.
    rewards = [0.1, 0.3, 0.7, 0.9, 0.7, 0.2, 0.0]
    found = find_collapse(rewards, window=2, drop=0.5, noise=0.0)
    # Differences: 0.2 0.4 0.2 0.2 0.5 0.2, whose mean is 1.7 / 6 = 0.28333.
    assert found == Collapse(pytest.approx(0.8), 4, pytest.approx(0.1), pytest.approx(0.28333 / 1.12838, rel=1e-4))
    # The fall is 0.7; the share of the best is 0.875.
    assert find_collapse(rewards, 2, 0.87, 0.0) is not None
    assert find_collapse(rewards, 2, 0.88, 0.0) is None
    # One standard error is 0.28333 / 1.12838 * sqrt(2 / 2) = 0.2511, so that the fall is 2.788 of them.
    assert find_collapse(rewards, 2, 0.5, 2.78) is not None
    assert find_collapse(rewards, 2, 0.5, 2.80) is None


def test_two_whole_windows_are_needed():
    rewards = [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    assert find_collapse(rewards, 3, 0.5, 0.0) == Collapse(1.0, 2, 0.0, pytest.approx(0.2 / 1.12838, rel=1e-4))
    assert find_collapse(rewards[1:], 3, 0.5, 0.0) is None
    assert find_collapse([], 3, 0.5, 0.0) is None


def test_a_recovery_ends_it():
    rewards = [1.0] * 10 + [0.0] * 5
    assert find_collapse(rewards, 5, 0.5, 6.0) is not None
    assert find_collapse([*rewards, *[1.0] * 5], 5, 0.5, 6.0) is None


def test_the_best_is_the_latest_of_equal_ones():
    assert find_collapse([1.0] * 20 + [0.0] * 5, 5, 0.5, 6.0).best_index == 19


def test_negative_rewards_fall_too():
    assert find_collapse([-1.0] * 6 + [-4.0] * 3, 3, 0.5, 6.0) == Collapse(
        -1.0, 5, -4.0, pytest.approx(3 / 8 / 1.12838, rel=1e-4)
    )
    assert find_collapse([-4.0] * 6 + [-1.0] * 3, 3, 0.5, 6.0) is None


def test_noise_and_progress_are_no_collapse():
    """Like a tiny model's rewards: the mean of 16 rollouts that succeed or not."""
    rng = random.Random(0)
    for _ in range(200):
        level = rng.uniform(0.05, 0.9)
        rewards = []
        for _ in range(200):
            level = min(0.95, level + 0.001)
            rewards.append(sum(rng.random() < level for _ in range(16)) / 16)
            assert find_collapse(rewards[-60:], 5, 0.5, 6.0) is None
