"""Advantages of any rewards: finite, zero in sum, blind to rounding, and the same for a shifted or scaled reward."""

import itertools
import math
import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tandem.rl.advantages import (
    balance_and_normalize,
    group_advantages,
    have_spread,
    reward_std_dev,
    trajectory_weight,
)
from tandem.rl.gradient_step.learning_rate import reward_spread_trend

SIZES = [1e-300, 1e-30, 1e-12, 1e-6, 1.0, 1e3, 1e6, 1e12, 1e30, 1e300]
NOISES = {
    "sums in another order": [sum(order) for order in itertools.permutations((0.1, 0.2, 0.3, 0.4, 0.5, 0.6))],
    "a mean of many": [sum([0.1] * 1000) / 1000, math.fsum([0.1] * 1000) / 1000],
    "neighbours": [0.3, math.nextafter(0.3, 1), math.nextafter(0.3, 0)],
    "negative": [-(0.1 + 0.2 + 0.3), -(0.3 + 0.2 + 0.1)],
    "an offset": [1 + 1e-15, 1.0, 1 - 1e-15],
}


def float32(value: float) -> float:
    [rounded] = struct.unpack("f", struct.pack("f", value))
    return float(rounded)


FLOAT32_NOISES = [
    [float32(float32(float32(0.1) + float32(0.2)) + float32(0.3)), float32(0.6), float32(0.59999996)],
    [float32(1234.567), float32(1234.5671), float32(1234.567)],
]

rewards_of_a_group = st.lists(st.floats(-1e300, 1e300), max_size=40)
moderate = st.lists(st.integers(-1000, 1000).map(lambda n: n / 8), min_size=2, max_size=40)


def job_advantages(rewards: list[float], scale_rewards: bool, balance: float = 0.0) -> list[float] | None:
    """Return the final advantages of a job of one group of turns of 3 tokens, as a batch computes them."""
    advantages = [a for a in group_advantages(rewards, scale_rewards) if a != 0]
    weights = [trajectory_weight(3)] * len(advantages)
    final = balance_and_normalize(advantages, weights, [3] * len(advantages), balance)
    return None if final is None else final[0]


@pytest.mark.parametrize("scale_rewards", [True, False])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("noise", NOISES)
def test_rounding_is_no_signal(noise: str, size: float, scale_rewards: bool) -> None:
    rewards = [value * size for value in NOISES[noise]]
    assert len(set(rewards)) > 1
    assert not have_spread(rewards)
    assert reward_std_dev(rewards) == 0
    assert group_advantages(rewards, scale_rewards) == [0.0] * len(rewards)


@pytest.mark.parametrize("rewards", FLOAT32_NOISES)
def test_rounding_in_float32_is_no_signal(rewards: list[float]) -> None:
    assert len(set(rewards)) > 1
    assert group_advantages(rewards, True) == [0.0] * len(rewards)


@pytest.mark.parametrize("scale_rewards", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_a_real_difference_trains_at_full_strength_whatever_its_size(size: float, scale_rewards: bool) -> None:
    assert job_advantages([size, 2 * size], scale_rewards) == pytest.approx([-1, 1])
    assert job_advantages([0.0, size, 0.0, size], scale_rewards) == pytest.approx([-1, 1, -1, 1])


@pytest.mark.parametrize(
    "rewards", [[1e6, 1e6 + 1], [1.0, 1 + 1e-9], [1e7, 1e7 + 1], [0.1, 0.1 + 1e-6], [100.0, 100.5], [-1.0, 1.0]]
)
def test_a_small_difference_that_rounding_does_not_explain_trains(rewards: list[float]) -> None:
    assert job_advantages(rewards, True) == pytest.approx([-1, 1])


@pytest.mark.parametrize("scale_rewards", [True, False])
def test_a_reward_that_is_the_mean_up_to_rounding_has_no_advantage(scale_rewards: bool) -> None:
    assert sum([0.1, 0.2, 0.3]) / 3 != 0.2
    first, middle, last = group_advantages([0.1, 0.2, 0.3], scale_rewards)
    assert (first < 0, middle, last > 0) == (True, 0.0, True)


@settings(deadline=None)
@given(rewards_of_a_group, st.booleans())
@example([-1e300, 1e300], True)
@example([1e300] * 39 + [-1e300], False)
@example([5e-324, 1e-323], True)
@example([1e300, 1e-300, 0.0], True)
@example([1.0] * 39 + [1 + 1e-12], True)
@example([0.5] * 39 + [0.5 + 2.0**-20], False)
@example([float(i % 2) for i in range(5000)], True)
@example([1e300 * (i % 3) for i in range(5000)], False)
def test_advantages_are_finite_and_sum_to_zero(rewards: list[float], scale_rewards: bool) -> None:
    advantages = group_advantages(rewards, scale_rewards)
    assert len(advantages) == len(rewards)
    assert all(map(math.isfinite, advantages))
    size = max(map(abs, advantages), default=0.0)
    # In units of the largest, because a sum of the largest numbers overflows. Deviations within rounding are dropped.
    assert not size or abs(math.fsum(a / size for a in advantages)) <= 1e-6 * len(advantages)
    assert any(advantages) == have_spread(rewards)
    final = job_advantages(rewards, scale_rewards)
    assert (final is None) == (not have_spread(rewards))
    if final is not None:
        assert all(map(math.isfinite, final))
        assert math.fsum(map(abs, final)) / len(final) == pytest.approx(1)


@settings(deadline=None)
@given(st.floats(-1e300, 1e300), st.integers(1, 2000), st.booleans())
def test_ties_train_nothing(reward: float, number: int, scale_rewards: bool) -> None:
    assert group_advantages([reward] * number, scale_rewards) == [0.0] * number
    assert reward_std_dev([reward] * number) == 0


@settings(deadline=None)
@given(st.lists(st.floats(0.015625, 1), min_size=2, max_size=30), st.randoms(), st.sampled_from(SIZES))
def test_the_order_of_a_sum_is_no_signal(parts: list[float], random: object, size: float) -> None:
    def total() -> float:
        random.shuffle(parts)  # type: ignore[attr-defined]
        return sum(parts) * size

    rewards = [total() for _ in range(8)]
    assert not any(group_advantages(rewards, True))


@settings(deadline=None)
@given(moderate, st.integers(-1000, 1000), st.integers(-900, 900), st.booleans())
def test_a_shift_changes_nothing_and_a_scale_nothing_but_epsilon(
    rewards: list[float], shift: int, power: int, scale_rewards: bool
) -> None:
    advantages = group_advantages(rewards, scale_rewards)
    assert group_advantages([reward + shift for reward in rewards], scale_rewards) == pytest.approx(advantages)
    scaled = group_advantages([math.ldexp(reward, power) for reward in rewards], False)
    assert scaled == [math.ldexp(advantage, power) for advantage in group_advantages(rewards, False)]
    final = job_advantages(rewards, scale_rewards)
    assert job_advantages([math.ldexp(reward, power) for reward in rewards], scale_rewards) == pytest.approx(final)


@settings(deadline=None)
@given(moderate, st.randoms())
def test_the_order_of_trajectories_does_not_matter(rewards: list[float], random: object) -> None:
    places = list(range(len(rewards)))
    random.shuffle(places)  # type: ignore[attr-defined]
    advantages = group_advantages(rewards, True)
    shuffled = group_advantages([rewards[place] for place in places], True)
    assert shuffled == pytest.approx([advantages[place] for place in places], abs=1e-9)


@settings(deadline=None)
@given(moderate, st.floats(-1, 1))
def test_balance_keeps_advantages_finite_and_of_mean_one(rewards: list[float], balance: float) -> None:
    final = job_advantages(rewards, True, balance)
    if final is not None:
        assert math.fsum(map(abs, final)) / len(final) == pytest.approx(1)


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("spreads", [[0.0, 0.1, 0.2], [0.0, 0.3, 0.6, 0.9], [0.0, 0.01, 0.02, 0.03]])
def test_a_spread_that_grows_from_0_up_to_rounding_has_no_trend(spreads: list[float], size: float) -> None:
    assert reward_spread_trend([spread * size for spread in spreads]) == 1.0


@pytest.mark.parametrize("size", [1e-12, 1.0, 1e12])
def test_a_trend_is_relative_to_the_size_of_the_spreads(size: float) -> None:
    assert reward_spread_trend([size * 0.4, size * 0.3, size * 0.2]) == pytest.approx(0.5)
