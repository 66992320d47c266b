"""Settings of the engine's process: environment, vLLM's arguments, and rejected arguments."""

import json
import subprocess
import sys

import pytest

from tandem.cluster.config import EngineConfig
from tandem.cluster.engine.requests.field_rules import SHARED
from tandem.cluster.engine.setup.settings import engine_arguments, engine_environment
from tandem.rl.sampling_marks import CHANGES
from tandem.rl.settings import LoraSettings


def arguments(device: str = "cpu", lora: LoraSettings | None = None, **settings) -> list[str]:
    return engine_arguments(EngineConfig(**settings), "/models/x", "x", 512, lora or LoraSettings(), device)


def test_importing_the_engine_imports_neither_vllm_nor_torch():
    """vLLM reads its environment at import, and a process that starts an engine in another process needs neither."""
    code = "import sys, tandem.cluster.engine.engine; print({'vllm', 'torch', 'transformers'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "set()"


def test_only_a_local_model_keeps_the_engine_off_the_hub(tmp_path):
    assert engine_environment("cpu", str(tmp_path))["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in engine_environment("cpu", "Qwen/Qwen3-0.6B")


def test_workarounds_for_a_cpu_stay_on_a_cpu(tmp_path):
    cpu, cuda = (engine_environment(device, str(tmp_path), num_threads=3) for device in ("cpu", "cuda"))
    assert (cpu["OMP_NUM_THREADS"], cpu["TORCH_COMPILE_DISABLE"]) == ("3", "1")
    assert not {"OMP_NUM_THREADS", "TORCH_COMPILE_DISABLE", "VLLM_ENABLE_V1_MULTIPROCESSING"} & set(cuda)
    assert "--enforce-eager" in arguments("cpu")
    assert not [a for a in arguments("cuda") if "eager" in a or "block-size" in a]


def test_adapters_on_experts_come_in_the_layout_of_fused_experts():
    experts = LoraSettings(target_modules=("q_proj", "experts"))
    assert "--enable-mixed-moe-lora-format" in arguments("cuda", experts)
    assert "--enable-mixed-moe-lora-format" not in arguments("cuda")


def test_only_an_engine_on_a_gpu_frees_memory_in_its_sleep():
    assert "--enable-sleep-mode" in arguments("cuda", sleep=True)
    assert "--enable-sleep-mode" not in arguments("cuda")
    assert "--enable-sleep-mode" not in arguments("cpu", sleep=True)


@pytest.mark.parametrize(("device", "dtype"), [("cpu", "float32"), ("cuda", "bfloat16")])
def test_the_dtype_follows_the_device_unless_it_is_configured(device, dtype):
    assert f"--dtype={dtype}" in arguments(device)
    assert "--dtype=float32" in arguments(device, dtype="float32")


@pytest.mark.parametrize(("rank", "max_rank"), [(1, 1), (2, 8), (8, 8), (48, 64), (512, 512)])
def test_the_rank_is_the_next_one_that_vllm_has(rank, max_rank):
    assert f"--max-lora-rank={max_rank}" in arguments(lora=LoraSettings(r=rank))


def test_memory_is_bounded_on_a_cpu_even_when_nothing_says_so():
    assert "--kv-cache-memory-bytes=1073741824" in arguments("cpu")
    assert not [a for a in arguments("cuda") if "kv-cache-memory" in a]
    assert not [a for a in arguments("cpu", gpu_memory_utilization=0.3) if "kv-cache-memory" in a]


def test_a_replica_with_several_processes_has_them_on_its_own_node():
    parallel = {"--tensor-parallel-size=2", "--distributed-executor-backend=mp"}
    assert parallel <= set(arguments("cuda", tensor_parallel_size=2))
    assert not [a for a in arguments("cuda") if "parallel" in a or "executor" in a]


def test_a_cpu_has_numbers_of_its_own_where_a_gpu_has_those_of_vllm_and_of_its_plan():
    assert {"--max-num-seqs=64", "--max-loras=4"} <= set(arguments("cpu"))
    assert "--max-loras=2" in arguments("cpu", max_cpu_loras=2)  # vLLM wants no more slots than loaded versions
    assert not [a for a in arguments("cuda") if "max-num-seqs" in a or "async-scheduling" in a]
    assert {"--max-num-seqs=7", "--max-loras=3"} <= set(arguments("cuda", max_num_seqs=7, max_loras=3))


def test_an_engine_with_weights_of_its_own_keeps_the_tokenizer_of_training(tmp_path):
    served = arguments("cuda", path="/models/x-fp8")
    assert {"--model=/models/x-fp8", "--tokenizer=/models/x"} <= set(served)
    assert "--model=/models/x" in arguments("cuda") and not [a for a in arguments("cuda") if "tokenizer" in a]
    assert "HF_HUB_OFFLINE" not in engine_environment("cpu", str(tmp_path), weights="Qwen/Qwen3-0.6B-FP8")


def test_logits_are_float32_where_that_costs_no_copy_of_the_head():
    assert """--hf-overrides={"head_dtype": "float32"}""" in arguments("cuda")
    for others in (arguments("cuda", dtype="float32"), arguments("cpu"), arguments("cpu", dtype="bfloat16")):
        assert not [a for a in others if "hf-overrides" in a]


def test_vllm_takes_the_dtype_of_the_head(tiny_model):
    """On CUDA alone the override is set, so that only its reading is tested here."""
    from vllm.config import ModelConfig

    settings = json.loads(next(a for a in arguments("cuda") if "hf-overrides" in a).partition("=")[2])
    dtypes = [
        ModelConfig(model=str(tiny_model), dtype="bfloat16", hf_overrides=overrides).head_dtype
        for overrides in ({}, settings)
    ]
    assert [str(dtype) for dtype in dtypes] == ["torch.bfloat16", "torch.float32"]


def test_further_arguments_come_last_and_win():
    assert arguments(extra_args=("--max-num-seqs=7",))[-1] == "--max-num-seqs=7"


# Options of a completion request after which the engine samples from the policy's own distribution.
NEUTRAL_OPTIONS = frozenset(
    SHARED.keys()  # refused
    | {"messages", "model", "prompt", "prompt_embeds", "suffix", "documents", "chat_template", "chat_template_kwargs"}
    | {"reasoning_effort", "include_reasoning", "parallel_tool_calls", "add_generation_prompt", "add_special_tokens"}
    | {"continue_final_message", "truncate_prompt_tokens", "truncation_side", "media_io_kwargs", "mm_processor_kwargs"}
    | {"mm_payload", "return_mm_kwargs", "cache_salt", "user"}
    | {"n", "seed", "stream", "stream_options", "stream_interval"}  # how often, and to whom
    | {"logprobs", "top_logprobs", "prompt_logprobs", "logprob_token_ids", "echo", "routed_experts_prompt_start"}
    | {"return_tokens_as_token_ids", "return_token_ids", "return_token_offsets", "return_prompt_text"}
    | {"skip_special_tokens", "spaces_between_special_tokens", "include_stop_str_in_output"}
    | {"stop", "stop_token_ids", "ignore_eos", "max_tokens", "max_completion_tokens", "repetition_detection"}  # the end
    | {"length_penalty"}  # of beam search only
)


def test_every_option_of_a_completion_is_known_to_change_the_distribution_or_not() -> None:
    """A new release of vLLM may bring an option that changes which tokens are sampled."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    options = {*ChatCompletionRequest.model_fields, *CompletionRequest.model_fields}
    assert options == NEUTRAL_OPTIONS | set(CHANGES)
    assert not NEUTRAL_OPTIONS & set(CHANGES)
