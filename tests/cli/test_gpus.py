"""The GPUs of this machine, as the driver's tool names them, and the plan for them."""

import json
from pathlib import Path

import pytest

from tandem.cli import gpus
from tandem.cli.gpus import Gpu, GpuQueryError, local_gpus
from tandem.cli.memory_plans import memory_plan
from tandem.cluster.config import TandemConfig
from tandem.rl.errors import PolicyError

H100 = "0, GPU-aa11, NVIDIA H100 80GB HBM3, 81559, 570.86.15"
H200 = "1, GPU-bb22, NVIDIA H200, 143771, 570.86.15"
LLAMA_70B = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128_256, "hidden_size": 8192,
    "intermediate_size": 28_672, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
    "head_dim": 128, "max_position_embeddings": 131_072,
}  # fmt: skip


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """A function that puts a program in the place of the driver's tool."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def put(script: str) -> None:
        program = tmp_path / gpus.COMMAND
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")

    return put


def test_a_machine_without_a_driver_has_none(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert local_gpus() == []


@pytest.mark.parametrize(
    ("visible", "indices"), [(None, [0, 1]), ("1", [1]), ("1,0", [1, 0]), ("GPU-aa", [0]), ("", []), ("7", [])]
)
def test_gpus_are_those_that_the_process_may_use(driver, monkeypatch, visible, indices):
    driver(f"echo '{H100}'; echo '{H200}'")
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = local_gpus()
    assert [gpu.index for gpu in found] == indices
    if indices == [0, 1]:
        assert found[0] == Gpu(0, "GPU-aa11", "NVIDIA H100 80GB HBM3", 81_559 << 20, "570.86.15")


@pytest.mark.parametrize("script", ["echo broken >&2; exit 9", "echo '0, GPU-aa, H100, [N/A], 570'", "sleep 9"])
def test_a_driver_that_does_not_answer_is_a_sentence(driver, monkeypatch, script):
    monkeypatch.setattr(gpus, "TIMEOUT_S", 0.5)
    driver(script)
    with pytest.raises(GpuQueryError):
        local_gpus()


def test_no_devices_are_no_error(driver):
    driver("echo 'No devices were found'; exit 6")
    assert local_gpus() == []


# The plan for them


def a_gpu(gigabytes: int, index: int = 0) -> Gpu:
    return Gpu(index, f"GPU-{index}", "H", gigabytes * 10**9, "1")


@pytest.fixture
def config(tmp_path: Path) -> TandemConfig:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_70B))
    base = {"name": "big", "path": str(tmp_path), "max_model_len": 8192, "learners": {"jobs_at_once": 1}}
    return TandemConfig.load({"base_models": [base]})


def test_a_model_that_must_be_divided_is_refused_with_the_settings_that_fit(config):
    with pytest.raises(PolicyError) as refused:
        memory_plan(config, "big", [a_gpu(80, index) for index in range(8)])
    message = str(refused.value)
    assert "weights 141.1 GB" in message
    assert "learners.shard: 4" in message and "engine.tensor_parallel_size: 4" in message


def test_a_model_that_fits_no_division_is_refused_plainly(config):
    with pytest.raises(PolicyError, match="No division"):
        memory_plan(config, "big", [a_gpu(24)])


def test_learner_and_engine_of_one_gpu_have_one_plan():
    tiny = TandemConfig.load({})
    plan = memory_plan(tiny, "tandem/tiny", [a_gpu(24)])
    assert plan.count("Memory plan") == 1 and "learner" in plan and "KV cache" in plan
    assert memory_plan(tiny, "tandem/tiny", [a_gpu(24, 0), a_gpu(24, 1)]).count("Memory plan") == 2
    assert memory_plan(tiny, "tandem/tiny", []).startswith("not planned")
