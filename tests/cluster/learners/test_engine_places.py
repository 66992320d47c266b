"""Rooms beside engines go to one learner each, of whichever group, and follow the strategy of the group."""

import pytest

from tandem.cluster.learners.places.engine_places import EnginePlace, EnginePlaces, chosen


def replica(number, node, bundle=True):
    return EnginePlace(f"replica-{number}", node, f"bundle-{number}" if bundle else None)


@pytest.fixture
def running():
    return {"a": [replica(1, "n1"), replica(2, "n2")], "b": [replica(3, "n1"), replica(4, "n1", bundle=False)]}


def test_a_room_is_given_to_one_group_until_it_is_given_back(running):
    places = EnginePlaces(lambda: running)
    assert places.running() == {"a": 2, "b": 2}
    [first] = places.take("a", {"a": 1}, "PACK")
    [second] = places.take("b", {"a": 1}, "PACK")
    assert {first.actor, second.actor} == {"replica-1", "replica-2"}
    assert places.take("c", {"a": 1}, "PACK") is None
    places.give_back("a")
    assert places.take("c", {"a": 1}, "PACK") == [first]


def test_all_rooms_are_taken_or_none(running):
    places = EnginePlaces(lambda: running)
    assert places.take("a", {"a": 2, "b": 2}, "PACK") is None, "one engine of b has no room"
    assert len(places.take("b", {"a": 2, "b": 1}, "PACK")) == 3


def test_the_room_of_a_replica_that_ended_is_not_given(running):
    places = EnginePlaces(lambda: running)
    running["a"] = [replica(5, "n1")]
    assert places.take("a", {"a": 1}, "PACK") == [replica(5, "n1")]
    assert places.take("b", {"a": 1}, "PACK") is None


def test_strategies():
    found = [replica(1, "n1"), replica(2, "n2"), replica(3, "n2"), replica(4, "n3")]
    assert {place.node_id for place in chosen(found, 2, "PACK")} == {"n2"}
    assert {place.node_id for place in chosen(found, 2, "STRICT_PACK")} == {"n2"}
    for strategy in ("SPREAD", "STRICT_SPREAD"):
        assert {place.node_id for place in chosen(found, 3, strategy)} == {"n1", "n2", "n3"}
