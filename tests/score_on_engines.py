"""Score sequences on several engines in turn, in a process of its own: vLLM reads its environment at import.

    python score_on_engines.py < jobs.json

Reads a list of {"model", "adapters", "digest", "lora", "sequences", "tool_call_parser"}, with "dtype" if it isn't
float32. Its last line is {model: logprobs or error}.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tandem.cluster.config import EngineConfig
from tandem.cluster.engine.engine import Engine, engine_environment
from tandem.rl.settings import LoraSettings

MAX_LENGTH = 256


def score_on_engines(jobs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the scores of every job, or the error as text, by its model."""
    environment = {**os.environ, **engine_environment("cpu", jobs[0]["model"])}
    done = subprocess.run(
        [sys.executable, __file__], input=json.dumps(jobs), capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


async def _score(job: dict[str, Any]) -> list[list[float]]:
    config = EngineConfig(
        max_num_seqs=4,
        kv_cache_memory_bytes=8 << 20,
        tool_call_parser=job["tool_call_parser"],
        dtype=job.get("dtype", "auto"),
    )
    lora = LoraSettings(**job["lora"])
    engine = Engine(config, job["model"], "tiny", lambda digest: Path(job["adapters"]) / digest, MAX_LENGTH, lora)
    await engine.start()
    try:
        return await engine.score(job["sequences"], job["digest"])
    finally:
        await engine.stop()


def _scores_or_error(job: dict[str, Any]) -> Any:
    try:
        return [[None, *logprobs[1:]] for logprobs in asyncio.run(_score(job))]
    except Exception as error:
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    found = {job["model"]: _scores_or_error(job) for job in json.load(sys.stdin)}
    print("\n" + json.dumps(found), flush=True)
