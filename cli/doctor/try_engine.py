"""An engine for a minute: `python -m tandem.cli.doctor.try_engine MODEL DEVICE DIRECTORY` prints JSON.

The process must be started with `engine_environment`, because vLLM reads its environment at import.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Mapping

from tandem.cli.doctor.compute import DEVICE_TIMEOUT_S
from tandem.cli.doctor.trial import Trial, run_trial
from tandem.cluster.artifacts import Artifacts
from tandem.cluster.engine.engine import Engine

SEQUENCES, SEQUENCE_TOKENS = 32, 512


def main(trial: Trial) -> Mapping[str, object]:
    """Score the learner's probe under version 0, and time scoring."""
    return asyncio.run(_score(trial))


async def _score(trial: Trial) -> Mapping[str, object]:
    base, artifacts = trial.base, Artifacts(str(trial.directory / "artifacts"))
    digest = base.write_initial_version(artifacts)
    engine = Engine(
        base.config.engine,
        base.path,
        served_name=base.name,
        fetch=artifacts.pull_verified_adapter,
        max_model_len=base.max_model_len,
        lora=base.config.largest_lora,
    )
    await engine.start(DEVICE_TIMEOUT_S)
    try:
        [probe] = await engine.score([json.loads(trial.probe_file.read_text())], digest)
        choose = random.Random(0)
        length = min(SEQUENCE_TOKENS, base.max_model_len)
        sequences = [[choose.randrange(len(base.tokenizer)) for _ in range(length)] for _ in range(SEQUENCES)]
        await engine.score(sequences[:1], digest)
        began = time.perf_counter()
        await engine.score(sequences[1:], digest)
        speed = (SEQUENCES - 1) * length / (time.perf_counter() - began)
    finally:
        await engine.stop()
    return {"probe": probe[1:], "tokens_per_s": speed}


if __name__ == "__main__":
    run_trial(main)
