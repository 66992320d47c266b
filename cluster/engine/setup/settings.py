"""The environment variables and vLLM arguments of an engine's process. Importing this imports no vLLM."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tandem.cluster.config import EngineConfig
from tandem.rl.models.lora.adapter_config import EXPERTS
from tandem.rl.settings import LoraSettings
from tandem.rl.tiny.model import resolve_model

EngineDevice = Literal["cpu", "cuda"]
VLLM_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
CPU_KV_CACHE_BYTES = 1 << 30  # default on a CPU; vLLM's own default is most of the memory
WORKER_EXTENSION = "tandem.cluster.engine.vllm_changes.worker_extension.Extension"
CLEAN_BLOCKS = "tandem.cluster.engine.vllm_changes.clean_blocks.scheduler"
FLOAT_HEAD = '{"head_dtype": "float32"}'
"""vLLM's head would round logits to bfloat16, 0.06 at a logit of 20; learners keep float32 (`rl.logprobs`). On CUDA
both accumulate in float32 without a copy of the weights; on a CPU vLLM would convert them in every step."""
CPU_NUM_SEQS = 64
NUM_LORAS = 4  # where no memory plan says otherwise
CPU_WORKER = "tandem.cluster.engine.vllm_changes.cpu_moe.Worker"
CPU_BLOCK_SIZE = 32  # tokens; the default of 128 would share no prefix shorter than that


def lora_slot_rank(rank: int) -> int:
    """Return the rank of the slots that vLLM allocates for adapters of this rank."""
    return next(slot for slot in VLLM_LORA_RANKS if slot >= rank)


def weights_path(config: EngineConfig, model_path: str) -> str:
    """Return a Hugging Face id or a local directory with the weights to serve."""
    return model_path if config.path is None else resolve_model(config.path)


def engine_environment(
    device: EngineDevice, model_path: str, num_threads: int = 1, weights: str | None = None
) -> dict[str, str]:
    """Return the environment variables that an engine's process must be started with.

    `weights` is the path of the weights, if it isn't `model_path`.
    """
    env = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_API_KEY": "",  # the API authenticates requests
        "TOKENIZERS_PARALLELISM": "false",
        "VLLM_COMPUTE_NANS_IN_LOGITS": "1",  # read by `finiteness`; one pass over the logits of sampled positions
    }
    if all(Path(path).is_dir() for path in (model_path, weights or model_path)):
        env |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if device == "cpu":
        env |= {
            # On a CPU, run the worker in the engine core's process: one import of vLLM less.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            # Two OpenMP threads beside a learner's on the same cores make vLLM up to 30 times slower.
            "OMP_NUM_THREADS": str(num_threads),
            "OMP_WAIT_POLICY": "PASSIVE",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # its default asks for a NUMA node for each parallel process
            "TORCH_COMPILE_DISABLE": "1",  # compiling would delay the first request by many seconds
            "VLLM_LOGGING_LEVEL": "WARNING",
        }
    return env


def engine_arguments(
    config: EngineConfig,
    model_path: str,
    served_name: str,
    max_model_len: int | None,
    lora: LoraSettings,
    device: EngineDevice,
) -> list[str]:
    """Return the arguments of `vllm serve` for this engine; `config.extra_args` come last, so they win."""
    defaults = {"cpu": "float32", "cuda": "bfloat16"}
    dtype = defaults[device] if config.dtype == "auto" else config.dtype
    kv_cache_bytes = config.kv_cache_memory_bytes
    if device == "cpu" and kv_cache_bytes is None and config.gpu_memory_utilization is None:
        kv_cache_bytes = CPU_KV_CACHE_BYTES
    options = {
        "model": weights_path(config, model_path),
        "tokenizer": None if config.path is None else model_path,  # with its chat template, as in training
        "served-model-name": served_name,
        "dtype": dtype,
        "max-model-len": max_model_len,
        "max-num-seqs": config.max_num_seqs or (CPU_NUM_SEQS if device == "cpu" else None),
        "max-loras": config.max_loras or min(NUM_LORAS, config.max_cpu_loras),
        "max-cpu-loras": config.max_cpu_loras,
        "max-lora-rank": lora_slot_rank(lora.r),
        "kv-cache-memory-bytes": kv_cache_bytes,
        "gpu-memory-utilization": config.gpu_memory_utilization,
        "worker-extension-cls": WORKER_EXTENSION,
        "tool-call-parser": config.tool_call_parser,
        "generation-config": "vllm",  # requests set sampling options, not the model directory
        "logprobs-mode": "raw_logprobs",  # of the policy itself, before temperature and top-p
        "scheduling-policy": "priority",
        # By default, vLLM may check a grammar with one library and compile it with another, of an earlier request.
        "structured-outputs-config.backend": "xgrammar",
    }
    if config.tensor_parallel_size > 1:
        # Never vLLM's executor on Ray, whose actors would need room beside the replica that has the GPUs.
        options |= {"tensor-parallel-size": config.tensor_parallel_size, "distributed-executor-backend": "mp"}
    flags = ["enable-lora", "enable-prefix-caching", "enable-auto-tool-choice", "return-tokens-as-token-ids"]
    flags += ["language-model-only"]  # of a multimodal model: the rest isn't loaded, images are refused
    flags += ["disable-log-stats"]  # vLLM's own loggers; `EngineStats` takes their place
    if device == "cpu":
        options |= {
            "block-size": CPU_BLOCK_SIZE,
            "worker-cls": CPU_WORKER,
            "scheduler-cls": CLEAN_BLOCKS,
        }
        flags += ["enforce-eager"]
    elif dtype == "bfloat16":
        options["hf-overrides"] = FLOAT_HEAD
    if device == "cuda" and config.sleep:
        flags += ["enable-sleep-mode"]
    if EXPERTS in lora.target_modules:
        flags += ["enable-mixed-moe-lora-format"]  # every family then takes the layout of `rl.models.lora.experts`
    named = [f"--{name}={value}" for name, value in options.items() if value is not None]
    targets = ["--lora-target-modules", *lora.target_modules]
    return [*named, *targets, *(f"--{flag}" for flag in flags), *config.extra_args]
