"""Training of an agent with openpipe-art 0.5.23: captured trajectories, version by version."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable
from statistics import fmean

import art
from sum_task import GROUP_SIZE, GROUPS, LEARNING_RATE, PACKED, VERSIONS


async def train_versions(url: str, key: str, episode: Callable[[str], Awaitable[float]]) -> None:
    """Train the versions and print the mean reward of each, and the id of the model, as JSON."""
    backend = art.ServerlessBackend(api_key=key, base_url=f"{url}/v1")
    name = f"agent-{uuid.uuid4().hex[:8]}"
    model = art.TrainableModel(run_name=name, name=name, project="tests", base_model="tandem/tiny")
    await model.register(backend)

    async def rollout() -> art.Trajectory:
        with art.Trajectory() as trajectory:
            trajectory.reward = await episode(model.get_inference_name())
        return trajectory

    async def group() -> art.TrajectoryGroup:
        return art.TrajectoryGroup(await asyncio.gather(*(rollout() for _ in range(GROUP_SIZE))))

    rewards = []
    for version in range(VERSIONS + 1):
        groups = await asyncio.gather(*(group() for _ in range(GROUPS)))
        rewards.append(fmean(trajectory.reward for one in groups for trajectory in one.trajectories))
        if version < VERSIONS:
            options = {"learning_rate": LEARNING_RATE, "packed_sequence_length": PACKED}
            result = await backend.train(model, groups, **options)
            assert result.step == version + 1
    print(json.dumps({"rewards": rewards, "model_id": model.id}))
