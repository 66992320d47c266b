"""Supervised training, pull, fork and reinforcement learning with openpipe-art's newest client, as anybody writes it.

The client reaches W&B's artifacts through WANDB_BASE_URL. Arguments: the service's URL, a key, a directory. Prints the
results as one line of JSON.
"""

import asyncio
import json
import sys
import uuid
from pathlib import Path

import art
from art.utils.sft import train_sft_from_file

URL, KEY, DIRECTORY = sys.argv[1], sys.argv[2], Path(sys.argv[3])
QUESTIONS = ["Which is the largest: 1, 2 or 3?", "Which is the largest: 9, 5 or 4?"]
ANSWERS = ["The largest is 3.", "It is 9."]
ROWS = [
    {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
    for question, answer in zip(QUESTIONS, ANSWERS, strict=True)
]


async def registered(backend: art.ServerlessBackend, name: str) -> art.TrainableModel:
    model = art.TrainableModel(name=name, run_name=name, project="tests", base_model="tandem/tiny")
    await model.register(backend)
    return model


async def rollouts(model: art.TrainableModel) -> art.TrajectoryGroup:
    async def rollout(index: int) -> art.Trajectory:
        messages = [{"role": "user", "content": QUESTIONS[index % 2]}]
        completion = await model.openai_client().chat.completions.create(
            model=model.get_inference_name(), messages=messages, max_tokens=16
        )
        return art.Trajectory(messages_and_choices=[*messages, completion.choices[0]], reward=float(index % 2))

    return art.TrajectoryGroup([await one for one in map(rollout, range(4))])


async def main() -> None:
    backend = art.ServerlessBackend(api_key=KEY, base_url=f"{URL}/v1")
    model = await registered(backend, f"sft-{uuid.uuid4().hex[:8]}")
    found: dict[str, object] = {"model": model.id, "entity": model.entity}

    file = DIRECTORY / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS * 6))
    await train_sft_from_file(model, str(file), epochs=2, batch_size=2, peak_lr=1e-2)
    found["step_after_file"] = await model.get_step()

    trajectories = [art.Trajectory(messages_and_choices=row["messages"], reward=0.0) for row in ROWS]
    config = art.TrainSFTConfig(learning_rate=[1e-3, 1e-3], batch_size=1)
    losses = [metrics async for metrics in backend._train_sft(model, trajectories, config, {})]
    found["losses"] = [metrics["loss/train"] for metrics in losses]
    await model.train_sft(trajectories, config)
    found["step_after_sft"] = step = await model.get_step()

    pulled = await backend._experimental_pull_model_checkpoint(
        model, step="latest", local_path=str(DIRECTORY / "pulled")
    )
    found["pulled"] = sorted(path.name for path in Path(pulled).iterdir())

    fork = await registered(backend, f"{model.name}-fork")
    await backend._experimental_fork_checkpoint(fork, from_model=model.name, not_after_step=step)
    found |= {"fork": fork.id, "fork_step": await fork.get_step()}

    group = await rollouts(fork)
    found["rl_step"] = (await backend.train(fork, [group], learning_rate=1e-4)).step
    found["rl_step_of_source"] = (await backend.train(model, [await rollouts(model)], learning_rate=1e-4)).step
    print("RESULT " + json.dumps(found))


asyncio.run(main())
