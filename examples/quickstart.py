"""Train a tiny language model to name the largest of three numbers, with nothing but HTTP calls to Tandem.

    TANDEM_URL=http://127.0.0.1:8000 TANDEM_API_KEY=tdm_... python examples/quickstart.py

Each round asks the policy every question eight times, rewards the right answers, posts the rewarded trajectories as
one training job, and asks again once the job has made a new version. `make demo` runs this against its own service.
"""

import argparse
import asyncio
import os
import random
import sys
import time
from pathlib import Path

import httpx
import matplotlib
from openai import AsyncOpenAI
from rich.console import Console
from rich.live import Live
from rich.table import Column, Table

from tandem.rl.policy_versions import tag_policy_versions

matplotlib.use("Agg")
from matplotlib import pyplot as plt

URL = os.environ.get("TANDEM_URL", "http://127.0.0.1:8000")
KEY = os.environ.get("TANDEM_API_KEY", "")
RESULTS = Path("demo-results")
ROLLOUTS_PER_QUESTION = 8
console = Console()


def question(rng: random.Random) -> tuple[str, int]:
    """A question and the number that answers it."""
    a, b, c = rng.sample(range(1, 21), 3)
    return f"Which is the largest: {a}, {b} or {c}?", max(a, b, c)


def reward(answer: str | None, largest: int) -> float:
    """1 for the right answer, in a sentence; 0 for anything else."""
    return float(answer == f"The largest is {largest}.")


async def roll_out(client: AsyncOpenAI, model: str, text: str, largest: int) -> dict:
    """One trajectory group: the same question, answered several times and rewarded."""
    messages = [{"role": "user", "content": text}]
    completion = await client.chat.completions.create(
        model=model, messages=messages, n=ROLLOUTS_PER_QUESTION, max_tokens=24, temperature=1.0
    )
    return {
        "trajectories": [
            # The choice goes back as it came: it carries the sampled token ids and their logprobs.
            tag_policy_versions(
                {
                    "messages_and_choices": [*messages, choice.model_dump()],
                    "reward": reward(choice.message.content, largest),
                }
            )
            for choice in completion.choices
        ]
    }


async def train(http: httpx.AsyncClient, model_id: str, groups: list[dict], learning_rate: float) -> dict:
    """Posts a training job and returns the metrics of its last gradient step once the new version is there."""
    # Short packed sequences: each is one gradient step, so a job takes several.
    config = {"learning_rate": learning_rate, "packed_sequence_length": 256}
    body = {"model_id": model_id, "trajectory_groups": groups, "experimental_config": config}
    job = (await call(http, "POST", "/preview/training-jobs", json=body))["id"]
    metrics, after = {}, None
    while True:
        page = await call(http, "GET", f"/preview/training-jobs/{job}/events", params={"after": after} if after else {})
        for event in page["data"]:
            after = event["id"]
            if event["type"] == "gradient_step":
                metrics = event["data"]
            elif event["type"] == "training_ended":
                return metrics
            elif event["type"] == "training_failed":
                raise SystemExit(f"Training job {job} failed: {event['data']['error_message']}")
        await asyncio.sleep(0.1)


async def call(http: httpx.AsyncClient, method: str, path: str, **options) -> dict:
    response = await http.request(method, path, **options)
    if response.is_error:
        raise SystemExit(f"{method} {path} was refused ({response.status_code}): {response.text}")
    return response.json()


async def run(jobs: int, questions: int, learning_rate: float, seed: int) -> list[float]:
    """The mean reward of every policy version, from 0 to `jobs`."""
    rng = random.Random(seed)
    client = AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY)
    headers = {"Authorization": f"Bearer {KEY}"}
    rewards: list[float] = []
    async with httpx.AsyncClient(base_url=f"{URL}/v1", headers=headers, timeout=120) as http:
        name = f"quickstart-{time.strftime('%Y%m%d-%H%M%S')}"
        body = {"entity": None, "project": "examples", "name": name, "base_model": "tandem/tiny"}
        registered = await call(http, "POST", "/preview/models", json=body)
        model = f"{registered['entity']}/{registered['project']}/{registered['name']}"
        table = Table(
            "version",
            "reward",
            Column("", min_width=20, no_wrap=True),
            "loss",
            "entropy",
            "rollouts s",
            "training s",
            title=f"{model} learns",
        )
        with Live(table, console=console, refresh_per_second=4):
            for version in range(jobs + 1):
                began = time.monotonic()
                tasks = [question(rng) for _ in range(questions)]
                groups = await asyncio.gather(*(roll_out(client, model, *task) for task in tasks))
                rewards.append(mean_reward(groups))
                rolled_out = time.monotonic()
                metrics = await train(http, registered["id"], groups, learning_rate) if version < jobs else {}
                bar = "█" * round(20 * rewards[-1])
                seconds = [f"{rolled_out - began:.1f}", f"{time.monotonic() - rolled_out:.1f}" if metrics else ""]
                numbers = [f"{metrics[m]:.3f}" if m in metrics else "" for m in ("loss/train", "loss/entropy")]
                table.add_row(str(version), f"{rewards[-1]:.2f}", bar, *numbers, *seconds)
    return rewards


def mean_reward(groups: list[dict]) -> float:
    rewards = [trajectory["reward"] for group in groups for trajectory in group["trajectories"]]
    return sum(rewards) / len(rewards)


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
    parser.add_argument("--questions", type=int, default=32, help="questions of a job, each answered 8 times")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if not KEY:
        raise SystemExit("Set TANDEM_API_KEY to a key of the service at " + URL + " (`tandem keys create` makes one).")
    rewards = asyncio.run(run(options.jobs, options.questions, options.learning_rate, options.seed))
    picture = RESULTS / "reward.png"
    plot(rewards, picture)
    first, last = rewards[0], sum(rewards[-3:]) / 3
    console.print(
        f"\nMean reward went from {first:.2f} to {last:.2f} (last three versions); the curve is in {picture}."
    )
    if not (first < 0.5 and last > 0.8):
        sys.exit("That isn't the clear rise this example is meant to show: from below 0.5 to above 0.8.")


if __name__ == "__main__":
    main()
