"""Time to score a batch of long prompts by learner alone, by engine alone (learners check a sample), and by both.

    .venv/bin/python benchmarks/logprob_sharing.py --output benchmarks/results/logprob_sharing

The three modes alternate in one run, so that other load on the machine affects all of them. There are two batches:
"grouped", where the completions of a group share a prompt, which a learner computes once and an engine once per
completion, and "single", where nothing is shared. The results are OUTPUT.json and OUTPUT.png.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.base_models import ResolvedBaseModel
from tandem.cluster.config import BaseModelConfig, DeadlinesConfig, EngineConfig, LearnersConfig, LogprobsConfig
from tandem.cluster.engine.engine import Engine, engine_environment
from tandem.cluster.learners.group import LearnerGroup
from tandem.cluster.logprobs.engine_scorer import engine_scorer
from tandem.cluster.logprobs.pool import LogprobPool
from tandem.rl.packing import PackedSequence
from tandem.rl.tiny.model import resolve_model

MODES = ("learner", "engine", "shared")
DEADLINE_S = 600.0


def random_model(directory: Path, hidden: int, layers: int) -> Path:
    """Write a Qwen3 of the given size with random weights and the tiny model's tokenizer: only speed matters here."""
    tokenizer = AutoTokenizer.from_pretrained(resolve_model("builtin:tiny"))
    config = Qwen3Config(
        vocab_size=8192, hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=hidden // 128, head_dim=64, max_position_embeddings=2048,
        tie_word_embeddings=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def group_row(prompt: int, completion: int, completions: int, seed: int) -> PackedSequence:
    """Return a group as a packed row: a prompt of random tokens and its completions, all trained."""
    lengths = [prompt] + [completion] * completions
    segments = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    generator = torch.Generator().manual_seed(seed)
    offsets = [torch.arange(prompt)] + [prompt + torch.arange(completion)] * completions
    first = torch.cat([torch.arange(length) == 0 for length in lengths])
    trained = (segments > 0) & ~first
    return PackedSequence(
        token_ids=torch.randint(10, 8000, (len(segments),), generator=generator),
        positions=torch.cat(offsets),
        segment_ids=segments,
        parent_ids=torch.zeros_like(segments),
        loss_mask=trained,
        sampling_logprobs=torch.where(trained, -5.0, float("nan")),
        advantages=trained.float(),
        weights=trained.float(),
    )


def batches(options: argparse.Namespace) -> dict[str, list[PackedSequence]]:
    shape = options.prompt, options.completion
    return {
        "grouped": [group_row(*shape, options.completions, seed) for seed in range(options.groups)],
        "single": [group_row(*shape, 1, seed) for seed in range(options.groups * 2)],
    }


def measure(options: argparse.Namespace, model: Path, home: Path) -> list[dict[str, Any]]:
    """Score with each mode in turn. Return one record per scoring."""
    base = BaseModelConfig(
        name="bench", path=str(model), max_model_len=2048, learners=LearnersConfig(num_gpus=options.gpus),
        engine=EngineConfig(num_gpus=options.gpus, kv_cache_memory_bytes=512 << 20),
    )  # fmt: skip
    artifacts = Artifacts(str(home))
    digest = ResolvedBaseModel(base).write_initial_version(artifacts)
    learners = LearnerGroup(base, str(home), DeadlinesConfig())
    environment = engine_environment("cuda" if options.gpus else "cpu", str(model))
    actor: Any = ray.remote(Engine).options(
        num_cpus=1, num_gpus=options.gpus, max_concurrency=64, runtime_env={"env_vars": environment}
    )
    engine = actor.remote(base.engine, str(model), "bench", artifacts.pull_checkpoint, 2048, base.lora)
    learners.start()
    workers = learners.load(digest, "")
    ray.get(engine.start.remote(), timeout=DEADLINE_S)
    by_engine = engine_scorer(
        lambda ids, digest, timeout_s: ray.get(engine.score.remote(ids, digest), timeout=timeout_s), digest
    )
    records = []
    for batch, rows in batches(options).items():
        for repeat in range(-1, options.repeats):  # the first warms up
            for mode in MODES:
                settings = LogprobsConfig(mode=mode, chunk_tokens=options.chunk_tokens)
                pool = LogprobPool(settings, settings.tolerance_float32 if not options.gpus else 1.0, DEADLINE_S)
                began = time.perf_counter()
                _, report = pool.score(rows, learners.scorers(workers, digest, 1024), [by_engine])
                seconds = time.perf_counter() - began
                if repeat >= 0:
                    records.append(
                        {"batch": batch, "mode": mode, "repeat": repeat, "seconds": seconds} | report.metrics()
                    )
                console.print(f"{batch:8} {mode:8} {'warm-up' if repeat < 0 else repeat}  {seconds:6.2f} s")
    learners.stop()
    ray.kill(engine)
    return records


def summarize(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return medians, and their ratio to the learner alone."""
    rows = []
    for batch in dict.fromkeys(record["batch"] for record in records):
        medians = {
            mode: statistics.median(r["seconds"] for r in records if (r["batch"], r["mode"]) == (batch, mode))
            for mode in MODES
        }
        for mode in MODES:
            of_mode = [r for r in records if (r["batch"], r["mode"]) == (batch, mode)]
            rows.append({
                "batch": batch, "mode": mode, "median_seconds": medians[mode],
                "speed_over_learner": medians["learner"] / medians[mode],
                "engine_share": statistics.median(r.get("logprobs/engine_share", 0.0) for r in of_mode),
                "abs_diff_max": max((r.get("logprobs/engine_learner_abs_diff_max", 0.0) for r in of_mode), default=0.0),
            })  # fmt: skip
    return rows


def plot(records: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    kinds = list(dict.fromkeys(record["batch"] for record in records))
    figure, axes = plt.subplots(1, len(kinds), figsize=(4.5 * len(kinds), 3.6), squeeze=False)
    for axis, batch in zip(axes[0], kinds, strict=True):
        for position, mode in enumerate(MODES):
            seconds = [r["seconds"] for r in records if (r["batch"], r["mode"]) == (batch, mode)]
            axis.bar(position, statistics.median(seconds), color="#9ab8d8")
            axis.plot([position] * len(seconds), seconds, "k.", markersize=5)
        axis.set_xticks(range(len(MODES)), MODES)
        axis.set_title(f"{batch} prompts")
        axis.set_ylabel("seconds to score the batch")
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, default=12)
    parser.add_argument("--completions", type=int, default=8, help="completions of a group")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of a prompt")
    parser.add_argument("--completion", type=int, default=64, help="tokens of a completion")
    parser.add_argument("--chunk-tokens", type=int, default=1024)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--gpus", type=float, default=0, help="Ray GPUs of learner and engine each; 0: CPUs")
    parser.add_argument("--output", type=Path, default=Path("demo-results/logprob_sharing"))
    options = parser.parse_args()
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    with tempfile.TemporaryDirectory() as directory:
        model = random_model(Path(directory) / "model", options.hidden, options.layers)
        records = measure(options, model, Path(directory) / "home")
    ray.shutdown()
    rows = summarize(records)
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else value for value in row.values()))
    console.print(table)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    setting = {k: str(v) for k, v in vars(options).items()} | {"cpu_count": os.cpu_count(), "date": time.strftime("%F")}
    summary = {"setting": setting, "summary": rows, "records": records}
    options.output.with_suffix(".json").write_text(json.dumps(summary, indent=1))
    plot(records, options.output.with_suffix(".png"))


console = Console(highlight=False)

if __name__ == "__main__":
    main()
