"""Learners and engines get whole GPUs, which a learner and an engine may share, or the configuration is refused."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tandem.cluster.config import BaseModelConfig, EngineConfig, LearnersConfig, TandemConfig
from tandem.cluster.placement import BasePlacement, PlacementError, place


def base(num_learners=1, num_engines=1, name="m", learners=None, engine=None):
    return BaseModelConfig(
        name=name,
        path="x",
        learners=LearnersConfig(count=num_learners, **learners or {}),
        engine=EngineConfig(replicas=num_engines, **engine or {}),
    )


def config(*bases):
    return TandemConfig(base_models=bases)


def bundles(placement):
    """Return the parts of actors in each bundle of GPUs: [("e", 0.5), ("l", 0.5)] for an engine beside a learner."""
    found, guests = [], {(g, e): n for e, of in placement.of.items() for g, n in of.guests.items()}
    for base in placement.base_models:
        placed, engine, learners = placement.of[base.name], base.engine, base.learners
        assert (placed.engine_gpus, placed.learner_gpus) == (engine.num_gpus, learners.num_gpus)
        assert {e: n for (g, e), n in guests.items() if g == base.name} == placed.beside
        seated = [[("l", g)] * n for (g, e), n in guests.items() if e == base.name]
        seated = [[(kind, placement.of[g].learner_gpus)] for kind, g in itertools.chain(*seated)]
        assert len(seated) <= engine.replicas
        if engine.num_gpus:
            for guest in [*seated, *[[]] * (engine.replicas - len(seated))]:
                room = placed.engine_bundle["GPU"] if placed.engine_bundle else engine.num_gpus
                found.append((room, [("e", engine.num_gpus), *guest]))
        if learners.num_gpus:
            alone = learners.count - sum(placed.beside.values())
            assert alone >= 0
            found += [(placed.learner_bundle_gpus, [("l", learners.num_gpus)])] * alone
    return found


def check(placement, nodes):
    """Assert that whole GPUs hold all bundles, the largest first, with at most one learner and one engine each."""
    free = list(nodes)
    for room, parts in sorted(bundles(placement), key=lambda bundle: -bundle[0]):
        assert room == int(room), "a bundle is whole GPUs, unless the configuration names a part"
        assert sum(part for _, part in parts) <= room + 1e-9
        assert [kind for kind, _ in parts] in (["e"], ["l"], ["e", "l"])
        node = next(node for node, num_gpus in enumerate(free) if num_gpus >= room)
        free[node] -= int(room)


def test_every_number_of_gpus_learners_and_engines():
    """The lower bound: neither learners nor engines share a GPU with their like."""
    for num_gpus, num_learners, num_engines in itertools.product(range(1, 17), range(1, 9), range(1, 5)):
        wanted = config(base(num_learners, num_engines))
        if num_gpus < max(num_learners, num_engines):
            with pytest.raises(PlacementError, match=f"the cluster has {num_gpus} GPU"):
                place(wanted, num_gpus)
            continue
        placement = place(wanted, num_gpus)
        check(placement, [num_gpus])
        num_shared = sum(placement.of["m"].guests.values())
        assert num_shared == max(0, num_learners + num_engines - num_gpus), "as few as possible share"


@settings(max_examples=150, deadline=None)
@given(
    nodes=st.lists(st.integers(1, 8), min_size=1, max_size=3),
    wanted=st.lists(
        st.tuples(st.integers(1, 6), st.integers(1, 4), st.sampled_from([1, 1, 1, 2, 4])), min_size=1, max_size=3
    ),
    strategy=st.sampled_from(["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]),
)
def test_on_any_nodes_everything_fits_or_is_refused_with_the_numbers(nodes, wanted, strategy):
    bases = [
        base(count, replicas, f"m{k}", {"placement": strategy}, {"tensor_parallel_size": size})
        for k, (count, replicas, size) in enumerate(wanted)
    ]
    try:
        placement = place(config(*bases), nodes)
    except PlacementError as error:
        said = str(error)
        assert f"the cluster has {sum(nodes)} GPU" in said and "add GPUs" in said
        assert all(f" of m{k}" in said for k in range(len(bases)))
        return
    check(placement, nodes)
    assert all(base.engine.num_gpus in (0.5, base.engine.tensor_parallel_size) for base in placement.base_models)


@pytest.mark.parametrize(
    ("num_gpus", "num_learners", "num_engines", "num_shared"),
    [(4, 4, 2, 2), (2, 1, 2, 1), (8, 8, 4, 4), (8, 6, 4, 2), (1, 1, 1, 1), (2, 1, 1, 0), (8, 3, 1, 0)],
)
def test_who_shares(num_gpus, num_learners, num_engines, num_shared):
    placement = place(config(base(num_learners, num_engines)), num_gpus)
    [placed], [model] = placement.of.values(), placement.base_models
    assert placed.shares_gpu == placed.engine_shares == placed.learners_share == bool(num_shared)
    assert sum(placed.guests.values()) == num_shared
    assert model.learners.num_gpus == model.engine.num_gpus == (0.5 if num_shared else 1)
    assert placed.engine_bundle == ({"CPU": 2, "GPU": 1} if num_shared else None)


@pytest.mark.parametrize("nodes", [0, [], [0, 0]])
def test_without_gpus_everything_runs_on_cpus(nodes):
    placement = place(config(base(4, 2), base(1, 1, "n")), nodes)
    for model in placement.base_models:
        assert model.learners.num_gpus == model.engine.num_gpus == 0
        assert placement.of[model.name] == BasePlacement(), "no bundle has a GPU"


def test_the_refusal_names_a_change_that_helps():
    with pytest.raises(PlacementError) as refused:
        place(config(base(4, 2)), 2)
    said = str(refused.value)
    assert said.startswith("4 learners and 2 engines of m need at least 4 GPUs")
    assert "the cluster has 2 GPUs" in said and "Lower learners.count to 2, or add GPUs." in said
    place(config(base(2, 2)), 2)

    with pytest.raises(PlacementError, match=r"Lower engine\.tensor_parallel_size to 2"):
        place(config(base(2, 1, engine={"tensor_parallel_size": 4})), [2, 2])
    with pytest.raises(PlacementError, match=r"set learners\.placement to PACK"):
        place(config(base(2, 2, learners={"placement": "STRICT_SPREAD"})), 2)
    with pytest.raises(PlacementError, match=r"Lower learners\.count and engine\.replicas to at most 2"):
        place(config(base(3, 3)), 2)


def test_an_engine_of_several_gpus_has_them_alone_on_one_node():
    placement = place(config(base(2, 1, engine={"tensor_parallel_size": 2})), [2, 2])
    assert placement.of["m"].engine_gpus == 2 and not placement.of["m"].shares_gpu
    assert placement.engines_first  # learners on both nodes would leave no room for it
    with pytest.raises(PlacementError):
        place(config(base(3, 1, engine={"tensor_parallel_size": 2})), [2, 2])
    with pytest.raises(PlacementError, match="on other nodes"):
        place(config(base(1, 1, engine={"tensor_parallel_size": 2})), [1, 1, 1])


def test_learners_share_with_engines_of_their_own_base_first():
    placement = place(config(base(2, 1, "a"), base(1, 2, "b")), 5)
    assert placement.of["a"].beside == {"a": 1} and not placement.of["b"].shares_gpu
    placement = place(config(base(2, 1, "a"), base(1, 2, "b")), 3)
    assert placement.of["a"].beside == {"a": 1, "b": 1} and placement.of["b"].beside == {"b": 1}
    assert placement.of["b"].guests == {"a": 1, "b": 1}
    with pytest.raises(PlacementError):
        place(config(base(2, 1, "a"), base(1, 2, "b")), 2)


def test_a_bundle_has_the_cpus_of_both():
    models = [base(1, 1, "a", {"num_cpus": 3}, {"num_cpus": 2}), base(1, 1, "b", {"num_cpus": 4}, {"num_cpus": 0})]
    placement = place(config(*models), 2)
    assert placement.of["a"].engine_bundle == {"CPU": 5, "GPU": 1}
    assert placement.of["b"].engine_bundle == {"CPU": 4, "GPU": 1}


def test_what_the_user_sets_stays():
    placement = place(config(base(learners={"num_gpus": 0.7}, engine={"num_gpus": 0.25})), 1)
    [model] = placement.base_models
    assert (model.learners.num_gpus, model.engine.num_gpus) == (0.7, 0.25)
    assert placement.of["m"].engine_bundle == {"CPU": 2, "GPU": 0.95}  # the rest of the GPU is for others
    for part in ("learners", "engine"):
        [model] = place(config(base(**{part: {"num_gpus": 0}})), 1).base_models
        assert {model.learners.num_gpus, model.engine.num_gpus} == {0, 1}


def test_the_part_of_an_engine_leaves_the_rest_to_a_learner():
    [model] = place(config(base(engine={"num_gpus": 0.25})), 1).base_models
    assert model.learners.num_gpus == 0.75
    [model] = place(config(base(engine={"num_gpus": 0.25})), 2).base_models
    assert model.learners.num_gpus == 1


def test_small_parts_that_the_user_sets_lie_together_on_a_gpu():
    parts = {"learners": {"num_gpus": 0.25}, "engine": {"num_gpus": 0.25}}
    placement = place(config(base(1, 1, "a", **parts), base(1, 1, "b", **parts)), 1, is_fixed=True)
    assert [placement.of[name].engine_bundle["GPU"] for name in "ab"] == [0.5, 0.5]
    with pytest.raises(PlacementError):
        place(config(*(base(1, 1, name, **parts) for name in "abc")), 1, is_fixed=True)


def test_learners_of_a_group_share_no_gpu_whatever_part_the_user_sets():
    parts = {"learners": {"num_gpus": 0.2}, "engine": {"num_gpus": 0.5}}
    placement = place(config(base(3, 1, **parts)), 3, is_fixed=True)
    assert placement.of["m"].learner_bundle_gpus == 1 and placement.of["m"].beside == {"m": 1}
    with pytest.raises(PlacementError):
        place(config(base(3, 1, **parts)), 2, is_fixed=True)


def test_a_configuration_that_sets_all_may_wait_for_nodes_that_join():
    whole = config(base(2, 2, learners={"num_gpus": 1}, engine={"num_gpus": 1}))
    assert place(whole, 0) == place(whole, [2]) == place(whole, [2, 2])
    halves = config(base(2, 2, learners={"num_gpus": 0.5}, engine={"num_gpus": 0.5}))
    assert place(halves, 0) == place(halves, [2]) == place(halves, [4])
    assert place(halves, 0).of["m"].beside == {"m": 2}
    with pytest.raises(PlacementError, match="the cluster has 2 GPUs"):
        place(whole, [2], is_fixed=True)


@pytest.mark.parametrize(
    ("learners", "engine", "said"),
    [
        ({"num_gpus": 1.5}, {}, "learners.num_gpus of m is 1.5"),
        ({}, {"num_gpus": 2.25}, "engine.num_gpus of m is 2.25"),
        ({"num_gpus": 0, "device": "cuda"}, {}, "learners.device of m is cuda"),
    ],
)
def test_numbers_that_no_cluster_can_give_are_refused(learners, engine, said):
    with pytest.raises(PlacementError, match=said):
        place(config(base(learners=learners, engine=engine)), 8)


def test_the_device_of_learners_counts():
    with pytest.raises(PlacementError, match="the cluster has no GPU"):
        place(config(base(learners={"device": "cuda"})), 0)
    placement = place(config(base(learners={"device": "cpu"})), 1)
    assert placement.of["m"].learner_bundle_gpus == 0
    [model] = place(config(base(learners={"device": "cpu"})), 1).base_models
    assert (model.learners.num_gpus, model.engine.num_gpus) == (0, 1)


def test_the_limit_of_replicas_on_a_node_is_kept():
    one_each = base(1, 2, engine={"max_replicas_per_node": 1})
    assert place(config(one_each), [2, 2]).engines_first
    with pytest.raises(PlacementError):
        place(config(one_each), [4])


def test_the_limit_of_replicas_is_kept_by_small_nodes_where_engines_share():
    """Ray Serve takes no limit beside bundles."""
    limited = base(2, 2, engine={"max_replicas_per_node": 1})
    assert place(config(limited), [1, 1]).of["m"].engine_bundle
    with pytest.raises(PlacementError, match=r"leave engine\.max_replicas_per_node unset"):
        place(config(limited), [2, 1])
    halves = base(2, 2, learners={"num_gpus": 0.5}, engine={"num_gpus": 0.5, "max_replicas_per_node": 1})
    assert place(config(halves), [1]) == place(config(halves), 0)
    with pytest.raises(PlacementError, match="on a node of 2 GPUs"):
        place(config(halves), [2, 2])


def test_learners_beside_engines_keep_strict_strategies():
    spread = config(base(2, 2, learners={"placement": "STRICT_SPREAD"}))
    assert place(spread, [1, 1]).of["m"].beside == {"m": 2}
    with pytest.raises(PlacementError):
        place(spread, [2, 1])  # one learner would be alone, and nothing would keep it from the node of the other
    packed = config(base(2, 2, learners={"placement": "STRICT_PACK"}))
    assert place(packed, [2]).of["m"].beside == {"m": 2}


def test_the_sleep_of_an_engine_must_give_its_own_learners_memory():
    asleep = {"sleep": True}
    assert place(config(base(engine=asleep)), 1).of["m"].guests == {"m": 1}
    place(config(base(engine=asleep)), 0)  # on a CPU, it leaves the cores to learners
    with pytest.raises(PlacementError, match="no effect"):
        place(config(base(engine=asleep)), 2)
    with pytest.raises(PlacementError, match="another base model"):
        place(config(base(2, 1, "a", engine=asleep), base(1, 2, "b")), 3)
