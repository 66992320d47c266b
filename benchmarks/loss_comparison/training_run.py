"""One training run: rollouts, jobs and measurements of one configuration, seed and lag."""

from __future__ import annotations

import importlib.metadata
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from loss_comparison.configurations import Configuration
from loss_comparison.job import Trainer
from loss_comparison.measuring import Ruler, sample_groups
from loss_comparison.sampling import Sampler
from loss_comparison.settings import RunRequest, Settings
from tandem.rl.config import TrainingConfig
from tandem.rl.environments.base import Environment
from tandem.rl.environments.loading import load_environment
from tandem.rl.environments.rollouts import TaskStream
from tandem.rl.sampled_trajectories import SampledTrajectory
from tandem.rl.settings import LoraSettings
from tandem.rl.tiny.model import resolve_model
from tandem.rl.trajectories import TrajectoryGroup

Progress = Callable[[str], None]


@dataclass
class Stopwatch:
    """CPU seconds of this process, without the measurements."""

    cpu_s: float = 0.0
    _began: float = 0.0

    def __enter__(self) -> Stopwatch:
        self._began = time.process_time()
        return self

    def __exit__(self, *exception: object) -> None:
        self.cpu_s += time.process_time() - self._began


@dataclass(frozen=True)
class Bench:
    """The parts that every run of these settings uses."""

    trainer: Trainer
    sampler: Sampler
    environment: Environment[Any]
    ruler: Ruler
    tasks: TaskStream[Any]

    @classmethod
    def of(cls, settings: Settings, seed: int) -> Bench:
        torch.set_num_threads(settings.num_threads)
        path = resolve_model(settings.base_model)
        lora = LoraSettings(r=settings.lora_r, alpha=settings.lora_alpha)
        sampler = Sampler(path, lora, settings.device, settings.dtype, settings.max_tokens)
        trainer = Trainer.load(path, settings, sampler.tokenizer)
        environment = load_environment(settings.environment, settings.environment_options)
        ruler = Ruler.of(sampler, trainer.policy, trainer.versions[0], environment, seed, settings)
        return cls(trainer, sampler, environment, ruler, TaskStream(environment.tasks("train"), seed))

    def groups(self, settings: Settings, seed: int, batch: int, lag: int) -> list[TrajectoryGroup]:
        """Return the rollouts of a batch, sampled by the version that is `lag` versions old, or by the first."""
        tasks = self.tasks.batch(batch, settings.groups_per_version)
        version = max(0, self.trainer.version - lag)
        adapter = self.trainer.versions[version]
        return sample_groups(self.ruler, version, adapter, tasks, settings.group_size, f"train/{seed}/{batch}")


def training_config(configuration: Configuration, settings: Settings) -> TrainingConfig:
    return configuration.training_config(
        learning_rate=settings.learning_rate, packed_sequence_length=settings.packed_sequence_length
    )


def train(request: RunRequest, progress: Progress = lambda what: None) -> dict[str, Any]:
    """Return the result of a run, as it is stored. Its curve has one record per version, the base model's first.

    A record's rollout and gradient metrics are those of the job that made the version.
    """
    settings, seed = request.settings, request.seed
    began = time.monotonic()
    configuration = Configuration(request.name, "cispo", request.overrides, "")
    config = training_config(configuration, settings)
    bench = Bench.of(settings, seed)
    watch = Stopwatch()
    curve: list[dict[str, Any]] = []
    for version in range(settings.num_versions + 1):
        record: dict[str, Any] = {"version": version}
        if version > 0:
            with watch:
                groups = bench.groups(settings, seed, version - 1, request.lag)
                record |= bench.trainer.train(groups, config, f"{seed}/{version}")
            record["sampled_versions"] = sorted(
                {SampledTrajectory(t).policy_version for g in groups for t in g.trajectories}
            )
        if settings.evaluated(version):
            record["eval"] = bench.ruler.measure(version, bench.trainer.versions[version]).record()
        curve.append(record)
        progress(f"version {version} of {settings.num_versions}")
    return result(request, curve, watch.cpu_s, time.monotonic() - began)


def result(request: RunRequest, curve: list[dict[str, Any]], cpu_s: float, wall_s: float) -> dict[str, Any]:
    packages = ("torch", "transformers", "peft", *(("trl",) if request.kind == "trl" else ()))
    return {
        "request": request.model_dump(mode="json"),
        "fingerprint": request.fingerprint,
        "curve": curve,
        "cpu_seconds": cpu_s,
        "wall_seconds": wall_s,
        "versions": {package: importlib.metadata.version(package) for package in packages},
    }
