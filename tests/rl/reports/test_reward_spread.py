import pytest

from tandem.rl.reports.reward_spread import reward_spread


def test_quantiles_by_hand():
    # Sorted: 0, 1, 2, 3, 10. Index q * 4: 0, 0.4, 2, 3.6, 4.
    assert reward_spread([3, 0, 10, 1, 2]) == {
        "reward/min": 0,
        "reward/quantile_10": pytest.approx(0.4),
        "reward/median": 2,
        "reward/quantile_90": pytest.approx(7.2),
        "reward/max": 10,
    }


def test_few_and_large_rewards():
    assert reward_spread([]) == {}
    assert set(reward_spread([0.5]).values()) == {0.5}
    assert reward_spread([-1e308, 1e308])["reward/median"] == 0
