"""Seconds of a gradient step on a tree of trajectories, by how much of their common prefixes is computed once.

    .venv/bin/python benchmarks/prefix_forest.py --output benchmarks/results/prefix_forest.json

The workload is a group of agents with tools: a long system prompt, a task, and then six turns, each of sampled tokens
and a tool's result. Some trajectories branch off another one after a few turns, as in a tree search. Each turn is a
sequence of its own, as when an agent sends a history per request: its context is everything before it, and it trains
its sampled tokens. So a turn that two trajectories share is trained twice, with the advantage of each.

The model, LoRA and plain torch are those of `learner_throughput.py`. All contenders take their steps by turns in this
process, and the ratios count. They are:

- `forest`: `Learner.step` on Tandem's rows;
- `prompt`: the same on rows that share only the prompt of the group;
- `unshared`: the same on rows without padding that share nothing;
- `dense`: plain torch and PEFT, padded, one trajectory per micro-batch.

AReaL-DTA (Zhang et al. 2026, arXiv 2602.00482) reports up to 8.3 times the throughput of dense training on such trees.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from learner_throughput import Step, Workload, dense_step, machine, tandem_step
from rich.console import Console
from rich.table import Table
from torch import Tensor

from tandem.rl.packing import PackedSequence, pack
from tandem.rl.tokens.tokenizing import TokenizedSequence


@dataclass(frozen=True)
class Trajectories:
    """Sizes of the group. `branches` has, for each trajectory, another one and how many of its turns it repeats."""

    prompt_tokens: int = 512
    sampled_tokens: int = 40
    result_tokens: int = 60
    num_turns: int = 6
    branches: tuple[tuple[int, int], ...] = ((0, 0), (0, 2), (0, 4), (1, 3), (4, 0), (4, 1), (5, 3), (4, 5))
    row_tokens: int = 4096

    def make(self, vocabulary: int) -> list[list[TokenizedSequence]]:
        """Return the sequences of each trajectory."""
        generator = torch.Generator().manual_seed(1)

        def tokens(number: int) -> Tensor:
            return torch.randint(vocabulary, (number,), generator=generator)

        prompt = tokens(self.prompt_tokens)
        turns: list[list[tuple[Tensor, Tensor]]] = []
        for index, (origin, num_repeated) in enumerate(self.branches):
            new = [
                (tokens(self.sampled_tokens), tokens(self.result_tokens)) for _ in range(num_repeated, self.num_turns)
            ]
            turns.append([*(turns[origin][:num_repeated] if origin < index else ()), *new])
        return [self._sequences(index, prompt, own) for index, own in enumerate(turns)]

    def _sequences(self, index: int, prompt: Tensor, turns: list[tuple[Tensor, Tensor]]) -> list[TokenizedSequence]:
        found: list[TokenizedSequence] = []
        context = prompt
        for sampled, result in turns:
            token_ids = torch.cat([context, sampled])
            is_sampled = torch.arange(len(token_ids)) >= len(context)
            found.append(
                TokenizedSequence(
                    group=0,
                    trajectory=index,
                    history=len(found),
                    token_ids=token_ids,
                    loss_mask=is_sampled,
                    sampling_logprobs=torch.where(is_sampled, -9.0, float("nan")).double(),
                    choice_offsets=(len(context),),
                    advantage=1.0 if index % 2 else -1.0,
                    weight=1.0,
                    prompt_length=len(prompt) - 1,
                )
            )
            context = torch.cat([token_ids, result])
        return found


def packed(sequences: Sequence[TokenizedSequence], row_tokens: int) -> dict[str, list[PackedSequence]]:
    """Return the rows of each contender that takes rows."""
    return {
        "forest": pack(sequences, row_tokens),
        "prompt": pack(sequences, row_tokens, min_gain=None),
        "unshared": pack([replace(s, prompt_length=0) for s in sequences], row_tokens, min_gain=None),
    }


def measure(steps: dict[str, Step], repeats: int, progress: Callable[[str], None]) -> dict[str, list[float]]:
    """Return the seconds of each step. All take their turns."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats):
        for name, step in steps.items():
            progress(f"{name}, step {repeat + 1} of {repeats}")
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def run(
    work: Workload, tree: Trajectories, repeats: int, threads: int, progress: Callable[[str], None] = lambda what: None
) -> dict[str, Any]:
    """Return the result as in the JSON file."""
    torch.set_num_threads(threads)
    load, others = os.getloadavg()[0], psutil.cpu_percent(interval=1.0)
    trajectories = tree.make(work.vocabulary)
    sequences = [sequence for of_trajectory in trajectories for sequence in of_trajectory]
    rows = packed(sequences, tree.row_tokens)
    work = replace(work, prompt_tokens=max(sequence.num_tokens for sequence in sequences))  # the model's limit
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model"
        work.make_model(path)
        steps: dict[str, Step] = {name: tandem_step(path, work, own) for name, own in rows.items()}
        steps["dense"] = dense_step(path, work, trajectories)
        for name in ("forest", "prompt"):  # the others take so long that a cold start doesn't count
            progress(f"{name}, to warm up")
            steps[name]()
        seconds = measure(steps, repeats, progress)
    num_tokens = {name: sum(row.num_tokens for row in own) for name, own in rows.items()}
    num_tokens["dense"] = sum(len(own) * max(s.num_tokens for s in own) for own in trajectories)
    return {
        "workload": {"model": asdict(work), "trajectories": asdict(tree)},
        "tokens": {
            "trained": sum(s.num_trained_tokens for s in sequences),
            "total": sum(s.num_tokens for s in sequences),
            "unique": len({tuple(s.token_ids[:n].tolist()) for s in sequences for n in range(1, s.num_tokens + 1)}),
        },
        "steps": {
            name: {
                "tokens": num_tokens[name],
                "seconds": min(values),
                "all_seconds": values,
                "times_dense": min(seconds["dense"]) / min(values),
            }
            for name, values in seconds.items()
        },
        "machine": machine(threads, load, others),
    }


def table(result: dict[str, Any]) -> Table:
    drawn = Table("", "tokens", "s a step", "times dense")
    for name, step in result["steps"].items():
        drawn.add_row(name, str(step["tokens"]), f"{step['seconds']:.2f}", f"{step['times_dense']:.2f}")
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    console = Console()
    with console.status("") as status:
        result = run(Workload(), Trajectories(), arguments.repeats, arguments.threads, status.update)
    console.print(table(result))
    tokens = result["tokens"]
    console.print(
        f"{tokens['total']} tokens, {tokens['unique']} of them unique ({tokens['total'] / tokens['unique']:.1f})."
    )
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
