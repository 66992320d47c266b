"""Train a tiny language model to name the largest of three numbers.

    TANDEM_URL=http://127.0.0.1:8000 TANDEM_API_KEY=tdm_... python examples/quickstart.py

Each round samples eight answers to every question, rewards the right ones, posts the rewarded trajectories as one
training job, and starts again when the job has made a new version. `make demo` runs this against its own service.
"""

import argparse
import asyncio
import random
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib
from openai import AsyncOpenAI
from rich.console import Console
from rich.live import Live
from rich.table import Column, Table

from tandem.client import AsyncClient, Model, TandemError

matplotlib.use("Agg")
from matplotlib import pyplot as plt

RESULTS = Path("demo-results")
ROLLOUTS_PER_QUESTION = 8
Group = dict[str, Any]
console = Console()


def question(rng: random.Random) -> tuple[str, int]:
    """Return a question and the number that answers it."""
    a, b, c = rng.sample(range(1, 21), 3)
    return f"Which is the largest: {a}, {b} or {c}?", max(a, b, c)


def reward(answer: str | None, largest: int) -> float:
    """Return 1 for the right answer in a sentence, 0 for anything else."""
    return float(answer == f"The largest is {largest}.")


async def roll_out(openai: AsyncOpenAI, model: Model, text: str, largest: int) -> Group:
    """Return a trajectory group: several rewarded answers to the same question."""
    completion = await openai.chat.completions.create(
        model=model.name,  # the newest version
        messages=[{"role": "user", "content": text}],
        n=ROLLOUTS_PER_QUESTION,
        max_tokens=24,
        temperature=1.0,
    )
    trajectories = [
        # The choice is posted unchanged: it carries the sampled token ids and their logprobs.
        {
            "messages_and_choices": [{"role": "user", "content": text}, choice],
            "reward": reward(choice.message.content, largest),
        }
        for choice in completion.choices
    ]
    return {"trajectories": trajectories}


async def train(client: AsyncClient, model: Model, groups: list[Group], learning_rate: float) -> dict[str, float]:
    """Train on the groups. Return the metrics of the last gradient step once the new version exists."""
    # Short packed sequences: each is one gradient step, so a job takes several.
    job = await client.train(model, groups, learning_rate=learning_rate, packed_sequence_length=256)
    metrics: dict[str, float] = {}
    async for event in client.events(job):
        if event.type == "gradient_step":
            metrics = event.data
    await client.wait(job)  # raises if the job failed
    return metrics


async def run(jobs: int, questions: int, learning_rate: float, seed: int) -> list[float]:
    """Return the mean reward of every policy version, from 0 to `jobs`."""
    rng = random.Random(seed)
    rewards: list[float] = []
    async with AsyncClient() as client:
        openai = client.openai()
        name = f"quickstart-{time.strftime('%Y%m%d-%H%M%S')}"
        model = await client.register_model(name, project="examples", base_model="tandem/tiny")
        bar_column = Column("", min_width=20, no_wrap=True)
        columns = ("version", "reward", bar_column, "loss", "entropy", "rollouts s", "training s")
        table = Table(*columns, title=f"{model.name} learns")
        with Live(table, console=console, refresh_per_second=4):
            for version in range(jobs + 1):
                began = time.monotonic()
                tasks = [question(rng) for _ in range(questions)]
                groups = await asyncio.gather(*(roll_out(openai, model, *task) for task in tasks))
                rewards.append(mean_reward(groups))
                rolled_out = time.monotonic()
                metrics = await train(client, model, groups, learning_rate) if version < jobs else {}
                bar = "█" * round(20 * rewards[-1])
                seconds = [f"{rolled_out - began:.1f}", f"{time.monotonic() - rolled_out:.1f}" if metrics else ""]
                numbers = [f"{metrics[m]:.3f}" if m in metrics else "" for m in ("loss/train", "loss/entropy")]
                table.add_row(str(version), f"{rewards[-1]:.2f}", bar, *numbers, *seconds)
    return rewards


def mean_reward(groups: list[Group]) -> float:
    rewards = [trajectory["reward"] for group in groups for trajectory in group["trajectories"]]
    return float(sum(rewards) / len(rewards))


def plot(rewards: list[float], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(7, 4))
    axes.plot(rewards, marker="o")
    axes.axhline(1 / 3, color="gray", linestyle=":", label="guessing")
    axes.set(xlabel="policy version", ylabel="mean reward", ylim=(0, 1.02), title="Naming the largest of three numbers")
    axes.legend(loc="lower right")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a tiny model to name the largest of three numbers.")
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("--questions", type=int, default=32, help="questions per job; each is answered 8 times")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        rewards = asyncio.run(run(options.jobs, options.questions, options.learning_rate, options.seed))
    except TandemError as error:
        sys.exit(str(error))
    picture = RESULTS / "reward.png"
    plot(rewards, picture)
    first, last = rewards[0], sum(rewards[-3:]) / 3
    console.print(
        f"\nMean reward rose from {first:.2f} to {last:.2f} (last three versions); the curve is in {picture}."
    )
    if not (first < 0.5 and last > 0.8):
        sys.exit("This isn't the clear rise that this example should show: from below 0.5 to above 0.8.")


if __name__ == "__main__":
    main()
