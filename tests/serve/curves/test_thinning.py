import pytest

from tandem.serve.curves.thinning import Spread, buckets, spread


def test_seven_versions_in_three_points_by_hand():
    rewards = [0.0, 1.0, 0.5, 0.5, -4.0, 0.25, 0.75]
    points = [spread(bucket) for bucket in buckets(rewards, 3)]
    # Versions 1 and 2, 3 and 4, 5 to 7: the outlier -4 stays visible as a minimum.
    assert points == [Spread(0.0, 0.5, 1.0), Spread(0.5, 0.5, 0.5), Spread(-4.0, -1.0, 0.75)]


@pytest.mark.parametrize(("number", "most"), [(0, 5), (1, 5), (5, 5), (7, 5), (1000, 7), (5000, 300)])
def test_each_item_is_in_one_bucket_and_none_is_empty(number, most):
    found = list(buckets(range(number), most))
    assert [item for bucket in found for item in bucket] == list(range(number))
    assert len(found) == min(number, most)
    assert all(found) and max(map(len, found), default=0) - min(map(len, found), default=0) <= 1


def test_unknown_values_do_not_count():
    assert spread([None, 1.0, None, 2.0]) == Spread(1.0, 1.5, 2.0)
    assert spread([None]) is None
    assert spread([]) is None


def test_large_and_equal_values_stay_within_their_bounds():
    assert spread([1.5e308, 1.7e308]).mean == pytest.approx(1.6e308)
    assert spread([0.1] * 3) == Spread(0.1, pytest.approx(0.1), 0.1)
