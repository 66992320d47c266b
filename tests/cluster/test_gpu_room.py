"""Units of GPUs that are said to fit do fit, in whatever order and on whatever nodes Ray places them."""

from collections import Counter

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tandem.cluster.gpu_room import Demand

SIZES = st.lists(st.sampled_from([1, 2, 3, 4, 8]), max_size=8)


@settings(max_examples=300, deadline=None)
@given(
    nodes=st.lists(st.integers(1, 8), min_size=2, max_size=4),
    engines=SIZES,
    num_learners=st.integers(0, 8),
    data=st.data(),
)
@example(nodes=[2, 2], engines=[1, 1, 2], num_learners=0, data=None)
def test_units_that_fit_are_placed_in_any_order(nodes, engines, num_learners, data):
    demand = Demand(Counter(engines), Counter({1: num_learners}))
    if not demand.fits(nodes):
        return
    assert data is not None, "one unit on each node leaves none for the largest"
    free = list(nodes)
    for unit in [*data.draw(st.permutations(engines)), *[1] * num_learners]:
        able = [node for node, num_gpus in enumerate(free) if num_gpus >= unit]
        assert able, (nodes, engines, free)
        free[data.draw(st.sampled_from(able))] -= unit


@given(node=st.integers(1, 16), engines=SIZES, num_learners=st.integers(0, 8))
def test_on_one_node_the_sum_decides(node, engines, num_learners):
    fits = Demand(Counter(engines), Counter({1: num_learners})).fits([node])
    assert fits == (sum(engines) + num_learners <= node)


@settings(deadline=None)
@given(fractions=st.lists(st.floats(0.05, 1.0), max_size=8), order=st.randoms())
def test_fractions_of_one_node_take_no_more_gpus_than_said(fractions, order):
    """Ray puts a fraction onto the GPU with the least room that is enough."""
    said, used = Demand(fractions=fractions).num_gpus([16]), []
    order.shuffle(fractions)
    for fraction in fractions:
        with_room = [gpu for gpu, taken in enumerate(used) if taken + fraction <= 1]
        if with_room:
            used[max(with_room, key=lambda gpu: used[gpu])] += fraction
        else:
            used.append(fraction)
    assert len(used) <= said


def test_learners_on_nodes_of_their_own_need_free_nodes():
    assert Demand(spread=[2]).fits([1, 1])
    assert not Demand(spread=[2]).fits([4])
    assert not Demand({1: 2}, spread=[2]).fits([2, 2])  # both engines may fill the first node
    assert Demand({1: 2}, spread=[2]).fits([2, 2, 2])


def test_learners_on_one_node_are_one_unit():
    assert Demand(learners={4: 1}).fits([2, 4])
    assert not Demand(learners={4: 1}).fits([2, 2])
    assert not Demand({1: 1}, {4: 1}).fits([4, 2])  # the engine may be on the node of four
