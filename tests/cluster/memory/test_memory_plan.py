"""The division of a GPU, worked by hand for Qwen3-4B: 4.02e9 parameters, 36 layers, 8 key-value heads of 128."""

import subprocess
import sys
from dataclasses import replace

import pytest
from public_models import QWEN3_4B

from tandem.cluster.config import BaseModelConfig, EngineConfig, LearnersConfig, LoraLimits
from tandem.cluster.memory.fit import find_fit
from tandem.cluster.memory.parts import (
    activation_bytes,
    engine_memory,
    learner_memory,
    sequence_kv_bytes,
    slot_bytes,
)
from tandem.cluster.memory.plan import MemoryPlan, Tenant, engine_settings, plan_memory
from tandem.cluster.memory.refusal import NoRoomError
from tandem.rl.models.geometry import Geometry, KvLayers, geometry_of
from tandem.rl.settings import LoraSettings

LORA = LoraSettings(r=16)
GPU = 80 * 10**9


@pytest.fixture(scope="module")
def geometry() -> Geometry:
    return geometry_of(QWEN3_4B, LORA)


def base(learners: dict | None = None, engine: dict | None = None, **settings) -> BaseModelConfig:
    parts = {"learners": LearnersConfig(**(learners or {})), "engine": EngineConfig(**(engine or {}))}
    return BaseModelConfig(name="m", path="x", lora=LORA, **parts, **settings)


def plan(config: BaseModelConfig, geometry: Geometry, length: int = 8192, gpu: int = GPU, **share) -> MemoryPlan:
    tenant = Tenant(config, geometry, length)
    return plan_memory(gpu, tenant, tenant, **share)


def test_importing_the_plan_imports_no_torch():
    code = "import sys, tandem.cluster.memory.plan; print({'vllm', 'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_a_learner_of_qwen3_4b(geometry):
    assert round(geometry.num_parameters / 1e9, 2) == 4.02
    assert geometry.lora_parameters == 16 * 57_344 * 36
    memory = learner_memory(base(), geometry, 8192)
    assert memory.weights == 2 * geometry.num_parameters
    assert memory.lora == 20 * geometry.lora_parameters  # value, gradient, two moments and a copy
    assert memory.other_models == 7 * 12 * geometry.lora_parameters + (256 << 20)
    checkpoints = 2 * 36 * 2560 * 8192
    # query, key, value, output, gate, up and down, each twice, and eight vectors of the width
    saved = 2 * (4096 + 1024 + 1024 + 2560 + 9728 + 9728 + 2560) + 8 * 2560
    backward = (2 * saved + 3 * 4 * 9728) * 8192
    assert backward > (3 * 4 + 2) * 1024 * 151_936  # a chunk of logits, which there is at another time
    assert memory.activations == checkpoints + backward + 4 * 2560 * 8192


def test_what_a_step_needs_follows_from_its_settings(geometry):
    usual = activation_bytes(geometry, 8192, 2, LearnersConfig())
    assert activation_bytes(geometry, 1, 2, LearnersConfig()) < usual / 100
    assert activation_bytes(geometry, 8192, 2, LearnersConfig(gradient_checkpointing=False)) > 5 * usual
    dense = activation_bytes(geometry, 8192, 2, LearnersConfig(attention="sdpa"))
    assert dense - usual == 2 * 8192**2
    assert learner_memory(base(dict(dtype="float32")), geometry, 8192).weights == 4 * geometry.num_parameters
    alone, several = (learner_memory(base(dict(count=count)), geometry, 8192).overhead for count in (1, 2))
    assert several > alone


def test_an_engine_of_qwen3_4b(geometry):
    assert slot_bytes(geometry, 16, 2, parallel=1) == 2 * geometry.lora_parameters
    assert slot_bytes(geometry, 9, 2, parallel=1) == 2 * geometry.lora_parameters  # vLLM has no rank of 9
    assert sequence_kv_bytes(geometry, 1, 2) == 147_456
    assert sequence_kv_bytes(geometry, 8192, 2) == 8192 * 147_456
    memory = engine_memory(base(), geometry, GPU, max_loras=8)
    assert memory.weights == 2 * geometry.num_parameters
    assert memory.lora == 8 * 2 * geometry.lora_parameters


def test_models_with_settings_of_their_own_are_counted_at_their_largest():
    limits = LoraLimits(max_r=64)
    narrow = base(lora_limits=limits).model_copy(
        update={"lora": LORA.model_copy(update={"target_modules": ("q_proj",)})}
    )
    wide = narrow.model_copy(update={"lora_limits": LoraLimits(max_r=64, target_modules=LORA.target_modules)})
    for config, width in ((narrow, 2560 + 4096), (wide, 57_344)):  # inputs and outputs of the adapted layers
        sizes = geometry_of(QWEN3_4B, config.largest_lora)
        assert sizes.lora_parameters == 64 * width * 36
        memory = learner_memory(config, sizes, 8192)
        assert memory.lora == 24 * sizes.lora_parameters  # as above, and another model's adapter to score under
        assert memory.other_models == 7 * 12 * sizes.lora_parameters + (256 << 20)
        assert slot_bytes(sizes, config.largest_lora.r, 2, parallel=1) >= 2 * sizes.lora_parameters
    assert engine_memory(wide, sizes, GPU, max_loras=8).lora == 8 * 2 * sizes.lora_parameters


def test_ranks_of_tensor_parallelism_share_what_they_can(geometry):
    """A of split outputs and B of split inputs are whole; so are key-value heads that are fewer than ranks."""
    of_one_layer = (
        (2560 + 4096 / 2) + 2 * (2560 + 1024 / 2) + (4096 / 2 + 2560) + 2 * (2560 + 9728 / 2) + (9728 / 2 + 2560)
    )
    assert slot_bytes(geometry, 16, 2, parallel=2) == 2 * 16 * 36 * of_one_layer
    assert sequence_kv_bytes(geometry, 1, 2, parallel=2) == 147_456 / 2
    assert sequence_kv_bytes(geometry, 1, 2, parallel=16) == 147_456 / 8


def test_layers_that_forget_take_no_more_beyond_their_reach(geometry):
    mixed = replace(geometry, kv_layers=(KvLayers(3, 2, 32, 16), KvLayers(1, 2, 32, None), KvLayers(2, 1, 1000, 0)))
    assert sequence_kv_bytes(mixed, 10, 2) == (3 * 10 + 10) * 2 * 32 * 2 + 2 * 1000 * 2
    assert sequence_kv_bytes(mixed, 100, 2) == (3 * 16 + 100) * 2 * 32 * 2 + 2 * 1000 * 2


def test_neighbours_divide_a_gpu(geometry):
    shared = plan(base(), geometry)
    assert shared.learner.total + shared.engine.total + shared.kv_cache_bytes == int(GPU * 0.97)
    assert shared.kv_tokens == shared.kv_cache_bytes // 147_456
    allocators = shared.learner_fraction + shared.engine_fraction
    assert allocators < 0.97 and GPU * (0.97 - allocators) == pytest.approx(2 * shared.learner.overhead, rel=1e-6)
    settings = engine_settings(EngineConfig(), shared)
    assert settings.kv_cache_memory_bytes == shared.kv_cache_bytes
    assert settings.gpu_memory_utilization == shared.engine_fraction
    assert settings.max_loras == shared.max_loras == 8
    for number in ("16.3 GB", "weights 8.0 GB", "8 LoRA slots 0.5 GB", f"{shared.kv_tokens:,} tokens"):
        assert number in str(shared)


def test_an_engine_alone_is_measured_by_vllm(geometry):
    tenant = Tenant(base(), geometry, 8192)
    alone = plan_memory(GPU, engine=tenant)
    assert alone.kv_cache_bytes == int(0.9 * GPU) - alone.engine.total
    settings = engine_settings(EngineConfig(), alone)
    assert (settings.kv_cache_memory_bytes, settings.gpu_memory_utilization) == (None, 0.9)
    assert plan_memory(GPU, learner=tenant).learner_fraction == 1.0


def test_a_part_of_a_gpu_is_all_that_a_base_model_takes(geometry):
    half = plan(base(), geometry, gpu=2 * GPU, share=0.5)
    assert half.learner.total + half.engine.total + half.kv_cache_bytes == int(GPU * 0.97)
    assert half.learner_fraction < 0.25


def test_what_the_user_sets_stays_and_is_checked(geometry):
    cache = plan(base(engine=dict(kv_cache_memory_bytes=20 * 10**9, max_loras=3)), geometry)
    assert (cache.kv_cache_bytes, cache.max_loras) == (20 * 10**9, 3)
    fraction = plan(base(engine=dict(gpu_memory_utilization=0.5)), geometry)
    assert fraction.kv_cache_bytes == 40 * 10**9 - fraction.engine.total
    settings = engine_settings(EngineConfig(gpu_memory_utilization=0.5), fraction)
    assert (settings.kv_cache_memory_bytes, settings.gpu_memory_utilization) == (fraction.kv_cache_bytes, 0.5)
    for engine in (dict(kv_cache_memory_bytes=70 * 10**9), dict(gpu_memory_utilization=0.9)):
        with pytest.raises(NoRoomError, match=f"lower engine.{next(iter(engine))}"):
            plan(base(engine=engine), geometry)
    with pytest.raises(NoRoomError, match=r"raise engine\.kv_cache_memory_bytes"):
        plan(base(engine=dict(kv_cache_memory_bytes=1 << 30)), geometry)


def test_a_refusal_has_the_numbers_and_what_to_change(geometry):
    with pytest.raises(NoRoomError) as refused:
        plan(base(), geometry, length=32_768, gpu=24 * 10**9)
    message = str(refused.value)
    assert "\n" not in message  # Serve's message about a replica has it in one line
    for said in ("24.0 GB", "weights 8.0 GB", "rows of 32,768 tokens", "lower max_model_len", "learners.shard"):
        assert said in message
    with pytest.raises(NoRoomError, match=r"learners\.jobs_at_once"):
        many = base(dict(jobs_at_once=256))
        plan_memory(GPU, learner=Tenant(many, geometry, 2048))
    with pytest.raises(NoRoomError, match=r"engine\.max_loras"):
        plan_memory(GPU, engine=Tenant(base(engine=dict(max_loras=2000, max_cpu_loras=2000)), geometry, 2048))


def test_more_slots_where_they_take_little(geometry):
    tenant = Tenant(base(), geometry, 8192)
    assert [plan_memory(gpu * 10**9, engine=tenant).max_loras for gpu in (24, 80)] == [4, 8]
    few = Tenant(base(engine=dict(max_cpu_loras=3)), geometry, 8192)
    assert plan_memory(GPU, engine=few).max_loras == 3


# Settings with which it fits


@pytest.mark.parametrize(
    ("num_gpus", "gpu", "found"),
    [
        (1, 80, (1, 1, True, 32_768)),  # one GPU for both
        (2, 80, (1, 1, False, 32_768)),
        (1, 40, (1, 1, True, 16_384)),  # shorter sequences
        (1, 16, None),
        (4, 16, (2, 2, False, 16_384)),  # weights and cache are divided
    ],
)
def test_the_longest_sequences_with_the_fewest_gpus(geometry, num_gpus, gpu, found):
    tenant = Tenant(base(dict(jobs_at_once=1)), geometry, 0)
    fit = find_fit(tenant, gpu * 10**9, num_gpus)
    assert (fit and (fit.shard, fit.tensor_parallel_size, fit.shares, fit.max_model_len)) == found


def test_what_fits_needs_no_more_gpus_than_there_are(geometry):
    tenant = Tenant(base(dict(jobs_at_once=1)), geometry, 0)
    for num_gpus in range(1, 17):
        for gpu in (10, 14, 20, 30):
            fit = find_fit(tenant, gpu * 10**9, num_gpus)
            assert fit is None or (fit.num_gpus <= num_gpus and fit.kv_tokens >= fit.max_model_len)


def test_an_engine_that_sleeps_leaves_its_learner_the_memory_of_weights_and_cache(geometry):
    usual, by_turns = (
        plan(base(engine=dict(num_gpus=0.5, sleep=sleep), learners=dict(num_gpus=0.5)), geometry)
        for sleep in (False, True)
    )
    assert usual.learner == by_turns.learner
    assert usual.engine == by_turns.engine
    # The cache grows by the activations, which are there only while the engine sleeps.
    assert by_turns.kv_cache_bytes - usual.kv_cache_bytes == usual.learner.activations
    assert by_turns.taken <= GPU * 0.97
    assert "by turns" in str(by_turns)
    assert "by turns" not in str(usual)


def test_both_turns_must_fit(geometry):
    """Rows so long that the learner leaves no room even for what a sleeping engine keeps."""
    config = base(engine=dict(num_gpus=0.5, sleep=True), learners=dict(num_gpus=0.5, gradient_checkpointing=False))
    fits = plan(config, geometry, 4096, gpu=60 * 10**9)
    needed = fits.learner.total + fits.engine.asleep
    assert fits.taken >= needed
    with pytest.raises(NoRoomError, match=r"lower max_model_len"):
        plan(config, geometry, 32_768, gpu=60 * 10**9)
