"""Teach a model the form of an answer by supervised fine-tuning, then let reinforcement learning find the right ones.

    TANDEM_URL=http://127.0.0.1:8000 TANDEM_API_KEY=tdm_... python examples/sft_then_rl.py

The rows show sentences with any of the three numbers, so they teach the form alone; the reward is for the largest.
"""

import argparse
import random
from collections.abc import Iterator
from typing import Any

from openai import OpenAI
from openai.types.chat import ChatCompletionUserMessageParam

from tandem.client import Client, Model

Numbers = tuple[int, int, int]


def ask(numbers: Numbers) -> ChatCompletionUserMessageParam:
    a, b, c = numbers
    return {"role": "user", "content": f"Which is the largest: {a}, {b} or {c}?"}


def draw(rng: random.Random) -> Numbers:
    a, b, c = rng.sample(range(1, 21), 3)
    return a, b, c


def rows(rng: random.Random, count: int) -> Iterator[dict[str, Any]]:
    """Yield rows that answer in the right form, with a number that may be wrong."""
    for _ in range(count):
        numbers = draw(rng)
        answer = {"role": "assistant", "content": f"The largest is {rng.choice(numbers)}."}
        yield {"messages": [ask(numbers), answer]}


def roll_out(openai: OpenAI, model: Model, numbers: Numbers, num_rollouts: int) -> dict[str, Any]:
    """Return a trajectory group: rewarded answers to one question."""
    completion = openai.chat.completions.create(
        model=model.name, messages=[ask(numbers)], n=num_rollouts, max_tokens=24, temperature=1.0
    )
    right = f"The largest is {max(numbers)}."
    trajectories = [
        {"messages_and_choices": [ask(numbers), choice], "reward": float(choice.message.content == right)}
        for choice in completion.choices
    ]
    return {"trajectories": trajectories}


def mean_reward(groups: list[dict[str, Any]]) -> float:
    rewards: list[float] = [trajectory["reward"] for group in groups for trajectory in group["trajectories"]]
    return sum(rewards) / len(rewards)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--jobs", type=int, default=6, help="Jobs of reinforcement learning.")
    parser.add_argument("--questions", type=int, default=16, help="Of each of these jobs.")
    parser.add_argument("--rollouts", type=int, default=8, help="Answers to each question.")
    parser.add_argument("--name", default="sft-then-rl")
    arguments = parser.parse_args()
    rng = random.Random(0)
    with Client() as client:
        openai = client.openai()
        model = client.register_model(arguments.name, project="examples", base_model="tandem/tiny")

        dataset = client.create_dataset(rows(rng, arguments.rows))
        job = client.train_sft(model, dataset, batch_size=8, learning_rate=1e-3)
        losses = [event.data["loss"] for event in client.events(job) if event.type == "gradient_step"]
        print(f"version {client.wait(job).step}: loss {losses[0]:.3f} -> {losses[-1]:.3f} over {len(losses)} batches")

        for _ in range(arguments.jobs):
            asked = [draw(rng) for _ in range(arguments.questions)]
            groups = [roll_out(openai, model, numbers, arguments.rollouts) for numbers in asked]
            job = client.train(model, groups, learning_rate=1e-3)
            print(f"version {client.wait(job).step}: reward {mean_reward(groups):.3f} before it")


if __name__ == "__main__":
    main()
