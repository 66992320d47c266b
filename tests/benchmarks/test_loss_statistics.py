"""Numbers of the report, compared with numbers worked out by hand."""

import math

import pytest
from loss_comparison.analysis import (
    Interval,
    area_under_curve,
    holm,
    outcome,
    paired_difference,
    steps_to_threshold,
    t_interval,
)


def test_a_t_interval():
    # mean 2, s = 1, t(2 degrees of freedom, 0.975) = 4.302653 by any table
    assert t_interval([1.0, 2.0, 3.0]) == Interval(2.0, pytest.approx(4.302653 / math.sqrt(3), rel=1e-6), 3)


def test_one_seed_has_no_interval():
    assert t_interval([0.5]).mean == 0.5
    assert math.isnan(t_interval([0.5]).half_width)


def test_the_area_is_by_trapezoids_over_uneven_steps():
    assert area_under_curve([0, 1, 3], [0.0, 1.0, 1.0]) == pytest.approx((0.5 + 2.0) / 3)


def test_the_first_version_at_the_threshold_counts_and_later_falls_do_not():
    assert steps_to_threshold([0, 2, 4, 6], [0.1, 0.8, 0.3, 0.9], 0.8) == 2
    assert steps_to_threshold([0, 2], [0.1, 0.2], 0.8) is None


def test_a_paired_difference():
    own, baseline = {0: 2.0, 1: 4.0, 2: 6.0, 3: 9.0}, {0: 1.0, 1: 2.0, 2: 3.0, 7: 0.0}
    found = paired_difference(own, baseline)  # 1, 2, 3 over the three seeds that both have
    assert found.interval.mean == 2.0 and found.interval.n == 3
    # t = 2 sqrt(3); with two degrees of freedom p = 1 - t / sqrt(2 + t^2)
    t = 2 * math.sqrt(3)
    assert found.p_value == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-9)


def test_equal_runs_are_no_difference():
    assert paired_difference({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}).p_value == 1.0


def test_holm_multiplies_the_smallest_most_and_keeps_the_order():
    # sorted: 0.01 * 3, 0.03 * 2, then 0.04 * 1, which may not be below the one before
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    unknown = holm([math.nan, 0.02])
    assert math.isnan(unknown[0]) and unknown[1] == 0.02


def run(rewards, cpu_seconds=1.0):
    curve = [
        {
            "version": version,
            "num_steps": version,
            "loss/grad_norm": 10.0 * version,
            "eval": {"reward": reward, "kl_base": version / 10, "entropy": 1 - version / 10},
        }
        for version, reward in enumerate(rewards)
    ]
    return {"curve": curve, "cpu_seconds": cpu_seconds}


def test_the_outcome_of_a_run():
    found = outcome(run([0.0, 0.4, 0.8, 0.6]), threshold=0.8)
    assert found.final_reward == pytest.approx((0.8 + 0.6) / 2)
    assert found.area == pytest.approx((0.2 + 0.6 + 0.7) / 3)
    assert (found.steps, found.is_censored) == (2.0, False)
    assert (found.kl_base, found.entropy) == (pytest.approx(0.3), pytest.approx(0.7))
    # gradient steps weigh alike: (1 * 10 + 2 * 20 + 3 * 30) / 6
    assert found.grad_norm == pytest.approx(140 / 6)
    assert math.isnan(found.clip_fraction)


def test_a_run_below_the_threshold_is_censored_at_its_end():
    found = outcome(run([0.0, 0.4, 0.8, 0.6]), threshold=0.9)
    assert (found.steps, found.is_censored) == (3.0, True)
