"""Parts of several base models on one GPU: whichever of them meet there, they fit together, or are refused."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from public_models import QWEN3_4B

from tandem.cluster.base_models import ResolvedBaseModel
from tandem.cluster.config import BaseModelConfig, EngineConfig, LearnersConfig, TandemConfig
from tandem.cluster.memory.joint import plan_neighbours
from tandem.cluster.memory.plan import MemoryPlan, Part, Tenant, engine_settings
from tandem.cluster.memory.refusal import NoRoomError
from tandem.cluster.placement import Placement, PlacementError, place
from tandem.rl.errors import PolicyError
from tandem.rl.models.geometry import Geometry, geometry_of
from tandem.rl.settings import LoraSettings

GB = 10**9
GPU = 80 * GB
BUDGET = int(GPU * 0.97)


@cache
def small() -> Geometry:
    return geometry_of(QWEN3_4B, LoraSettings(r=16))


def sized(times: float) -> Geometry:
    """Return a model whose weights are a multiple of those of Qwen3-4B."""
    names = ("num_parameters", "split_parameters", "kv_parameters", "replicated_parameters", "layer_parameters")
    return replace(small(), **{name: int(getattr(small(), name) * times) for name in names})


def base(name: str, num_learners: int = 1, num_engines: int = 1, **engine: float) -> BaseModelConfig:
    learners = LearnersConfig(count=num_learners, jobs_at_once=1)
    return BaseModelConfig(name=name, path="x", learners=learners, engine=EngineConfig(replicas=num_engines, **engine))


def plans(placement: Placement, sizes: dict[str, float], length: int = 8192) -> dict[tuple[str, Part], MemoryPlan]:
    """Return the plan that every actor makes. Raises NoRoomError."""

    def tenant(name: str, part: Part) -> Tenant:
        return Tenant(placement.config.base_model(name), sized(sizes[name]), length)

    parts: tuple[Part, ...] = ("learner", "engine")
    return {
        (name, part): plan_neighbours(GPU, name, part, placement.of, tenant) for name in placement.of for part in parts
    }


def pairs(placement: Placement) -> list[tuple[str, str]]:
    """Return learner and engine, by base model, of all that may meet on a GPU."""
    return [(guest, name) for name, placed in placement.of.items() for guest in placed.guests]


def test_an_engine_leaves_room_for_the_largest_learner_that_may_come():
    placement = place(TandemConfig(base_models=(base("a", 2, 1), base("b", 1, 2))), 3)
    assert placement.of["b"].guests == {"a": 1, "b": 1}
    found = plans(placement, {"a": 3.0, "b": 1.0})
    of_a, of_b, engine = found["a", "learner"], found["b", "learner"], found["b", "engine"]
    assert of_a.learner and of_b.learner and engine.engine and of_a.learner.total > of_b.learner.total
    assert of_a.learner.total + engine.engine.total + engine.kv_cache_bytes == BUDGET
    assert of_b.kv_cache_bytes == engine.kv_cache_bytes < BUDGET - of_b.learner.total - engine.engine.total
    assert engine.names == ("a", "b"), "the plan is printed with the neighbour that needs the most"
    chosen = engine_settings(placement.config.base_model("b").engine, engine)
    assert chosen.kv_cache_memory_bytes == engine.kv_cache_bytes
    assert of_a.learner_fraction < 1 and of_b.learner_fraction < 1, "each learner keeps to its part"


def test_two_that_do_not_fit_together_are_refused_with_the_names_and_numbers():
    wanted = base("a", 2, 1), base("b", 1, 2, kv_cache_memory_bytes=40 * GB)
    with pytest.raises(NoRoomError) as refused:
        plans(place(TandemConfig(base_models=wanted), 3), {"a": 3.8, "b": 1.0})
    said = str(refused.value)
    assert "a learner of a" in said and "an engine of b" in said and "a GPU of 80.0 GB has 77.6 GB" in said
    assert "lower engine.kv_cache_memory_bytes of b, or leave it out" in said


@settings(max_examples=100, deadline=None)
@given(
    num_gpus=st.integers(1, 8),
    wanted=st.lists(
        st.tuples(st.integers(1, 4), st.integers(1, 3), st.sampled_from([0.5, 1.0, 2.0, 3.0, 4.0])),
        min_size=1,
        max_size=3,
    ),
    kv_cache=st.sampled_from([None, 10 * GB, 40 * GB]),
)
def test_all_that_may_meet_on_a_gpu_fit_together_or_are_refused(num_gpus, wanted, kv_cache):
    cached = {} if kv_cache is None else {"kv_cache_memory_bytes": kv_cache}
    bases = [base(f"m{k}", learners, engines, **cached) for k, (learners, engines, _) in enumerate(wanted)]
    try:
        placement = place(TandemConfig(base_models=tuple(bases)), num_gpus)
    except PlacementError:
        assume(False)
    try:
        found = plans(placement, {f"m{k}": size for k, (_, _, size) in enumerate(wanted)})
    except NoRoomError as error:
        assert "80.0 GB" in str(error) and "To make it fit" in str(error)
        return
    for guest, name in pairs(placement):
        learner, engine = found[guest, "learner"], found[name, "engine"]
        assert learner.learner and engine.engine
        assert learner.learner.total + engine.engine.total + engine.kv_cache_bytes <= BUDGET, (guest, name)
        assert engine.kv_cache_bytes == (kv_cache or engine.kv_cache_bytes) > 0
        allocators = learner.learner_fraction + engine.engine_fraction  # what torch and vLLM take of the GPU
        assert allocators * GPU <= BUDGET - learner.learner.overhead - engine.engine.overhead + 1, (guest, name)
    for (name, part), plan in found.items():
        is_shared = any(name == pair[part == "engine"] for pair in pairs(placement))
        assert plan.is_shared == is_shared and plan.kv_tokens >= (8192 if part == "engine" else 0)


def test_a_base_model_resolves_its_neighbours(tmp_path):
    QWEN3_4B.save_pretrained(tmp_path)
    bases = [
        base(name, *counts).model_copy(update={"path": str(tmp_path)})
        for name, counts in (("a", (2, 1)), ("b", (1, 2)))
    ]
    placement = place(TandemConfig(base_models=tuple(bases)), 3)
    resolved = [ResolvedBaseModel(config, placement) for config in placement.base_models]
    engine = resolved[1].memory_plan(GPU, "engine")
    assert engine.learner and engine.is_shared
    assert engine.taken <= BUDGET
    with pytest.raises(PolicyError, match=r"Base model b can't be trained: .* a learner .* and an engine "):
        resolved[1].memory_plan(20 * GB, "engine")
