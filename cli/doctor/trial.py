"""Common parts of the programs that compute for `tandem doctor`: their arguments, their model, their answer."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tandem.cluster.base_models import ResolvedBaseModel
from tandem.cluster.config import BaseModelConfig, EngineConfig

MAX_TOKENS = 4096
"""Longest row and sequence: enough for every kind of block, and little memory."""
KV_CACHE_BYTES = 1 << 30
MEMORY_SHARE = 0.1
"""Fraction of a GPU that vLLM wants to be free; the size of its cache is set."""


@dataclass(frozen=True)
class Trial:
    base: ResolvedBaseModel
    device: str
    directory: Path
    """Files that the learner leaves for the engine."""

    @property
    def probe_file(self) -> Path:
        return self.directory / "probe.json"


def run_trial(compute: Callable[[Trial], Mapping[str, object]]) -> None:
    """Compute with MODEL on DEVICE, from the command line, and print the answer as the last line."""
    model, device, directory = sys.argv[1:]
    is_on_gpu = device == "cuda"
    engine = EngineConfig(
        num_gpus=int(is_on_gpu),
        kv_cache_memory_bytes=KV_CACHE_BYTES,
        gpu_memory_utilization=MEMORY_SHARE if is_on_gpu else None,
    )
    limit = ResolvedBaseModel(BaseModelConfig(name="doctor", path=model)).max_model_len
    config = BaseModelConfig(name="doctor", path=model, max_model_len=min(limit, MAX_TOKENS), engine=engine)
    answer = compute(Trial(ResolvedBaseModel(config), device, Path(directory)))
    print(json.dumps(answer), flush=True)
