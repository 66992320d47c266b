"""Replay: every loss on the same stored batches, so that only the loss differs.

The batches are rolled out once, by the sequence of policies that the baseline makes, and stored with the adapter of the
version that each was trained on. A loss is then examined in two ways:

- at the stored policies: its gradient over each whole batch, compared with the baseline's at the same weights;
- on its own path: trained from the base model through all batches in order, then measured. Its policy departs from the
  stored ones, as in offline training.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import torch as safetensors_torch
from torch import Tensor

from loss_comparison.configurations import BASELINE, Configuration, configuration
from loss_comparison.job import Adapter, Trainer
from loss_comparison.results import write_atomically
from loss_comparison.settings import FORMAT, RunRequest, Settings
from loss_comparison.training_run import Bench, Progress, Stopwatch, result, training_config
from tandem.rl.checkpoints import LearnerState
from tandem.rl.config import TrainingConfig
from tandem.rl.trajectories import TrajectoryGroup


@dataclass(frozen=True)
class StoredBatches:
    """Batch k as JSON, and the adapter of version k, from which the baseline trained on it."""

    batches: tuple[bytes, ...]
    adapters: tuple[bytes, ...]
    """safetensors."""

    @property
    def digests(self) -> dict[str, list[str]]:
        return {"batches": [_sha256(data) for data in self.batches], "adapters": [_sha256(a) for a in self.adapters]}

    @property
    def digest(self) -> str:
        return _sha256(json.dumps(self.digests, sort_keys=True).encode())

    def groups(self, index: int) -> list[TrajectoryGroup]:
        return [TrajectoryGroup.model_validate(group) for group in json.loads(self.batches[index])]

    def adapter(self, index: int) -> dict[str, Tensor]:
        return safetensors_torch.load(self.adapters[index])

    def write(self, directory: Path) -> None:
        """Write the manifest last: a directory without one isn't complete."""
        for index, (batch, adapter) in enumerate(zip(self.batches, self.adapters, strict=True)):
            write_atomically(directory / f"batch-{index:03}.json", batch)
            write_atomically(directory / f"adapter-{index:03}.safetensors", adapter)
        write_atomically(directory / "digests.json", json.dumps(self.digests, indent=1).encode())

    @classmethod
    def read(cls, directory: Path) -> StoredBatches:
        """Raise ValueError, with the file's name, if a file has changed."""
        digests = json.loads((directory / "digests.json").read_bytes())

        def read(kind: str, pattern: str) -> tuple[bytes, ...]:
            found = []
            for index, digest in enumerate(digests[kind]):
                file = directory / pattern.format(index)
                found.append(file.read_bytes())
                if _sha256(found[-1]) != digest:
                    raise ValueError(f"{file} has changed since it was stored. Remove {directory} to remake it.")
            return tuple(found)

        return cls(read("batches", "batch-{:03}.json"), read("adapters", "adapter-{:03}.safetensors"))


def stored_batches(directory: Path, settings: Settings, seed: int, lag: int, progress: Progress) -> StoredBatches:
    """Return the batches of this seed and lag, made on the first call."""
    key = json.dumps([FORMAT, settings.model_dump(mode="json"), seed, lag], sort_keys=True)
    place = directory / f"replay-{_sha256(key.encode())[:16]}"
    if (place / "digests.json").exists():
        return StoredBatches.read(place)
    stored = _roll_out(settings, seed, lag, progress)
    stored.write(place)
    return stored


def _roll_out(settings: Settings, seed: int, lag: int, progress: Progress) -> StoredBatches:
    bench = Bench.of(settings, seed)
    config = training_config(configuration(BASELINE), settings)
    batches: list[bytes] = []
    for batch in range(settings.num_versions):
        groups = bench.groups(settings, seed, batch, lag)
        batches.append(json.dumps([group.model_dump(mode="json", exclude_unset=True) for group in groups]).encode())
        bench.trainer.train(groups, config, f"{seed}/{batch + 1}")
        progress(f"storing batch {batch + 1} of {settings.num_versions}")
    adapters = tuple(safetensors_torch.save(dict(adapter)) for adapter in bench.trainer.versions[:-1])
    return StoredBatches(tuple(batches), adapters)


def replay(request: RunRequest, stored: StoredBatches, progress: Progress = lambda what: None) -> dict[str, Any]:
    """Return the result of one loss on the stored batches, with a record per batch for the version after it."""
    settings, seed = request.settings, request.seed
    if stored.digest != request.replay_digest:
        raise ValueError(f"The batches have digest {stored.digest}, but the request is for {request.replay_digest}.")
    began = time.monotonic()
    config = training_config(Configuration(request.name, "cispo", request.overrides, ""), settings)
    baseline = training_config(configuration(BASELINE), settings)
    bench, watch = Bench.of(settings, seed), Stopwatch()
    curve: list[dict[str, Any]] = [{"version": 0, "eval": _measured(bench, 0)}]
    groups_of = [stored.groups(index) for index in range(len(stored.batches))]
    for index, groups in enumerate(groups_of):
        with watch:
            metrics = bench.trainer.train(groups, config, f"{seed}/{index + 1}")
        record: dict[str, Any] = {"version": index + 1} | metrics
        if settings.evaluated(index + 1):
            record["eval"] = _measured(bench, index + 1)
        curve.append(record)
        progress(f"batch {index + 1} of {len(groups_of)}")
    adapters = [stored.adapter(index) for index in range(len(stored.adapters))]
    for index, groups in enumerate(groups_of):
        own, metrics = gradient(bench.trainer, adapters[: index + 1], groups, config)
        common, _ = gradient(bench.trainer, adapters[: index + 1], groups, baseline)
        curve[index + 1]["at_stored_policy"] = metrics | compared(own, common)
    done = result(request, curve, watch.cpu_s, time.monotonic() - began)
    return done | {"digests": stored.digests}


def gradient(
    trainer: Trainer, adapters: Sequence[Adapter], groups: Sequence[TrajectoryGroup], config: TrainingConfig
) -> tuple[Tensor, dict[str, float]]:
    """Return the gradient [parameters] of a batch at the last of `adapters`, as one gradient step, and its metrics.

    Afterwards the trainer holds that version.
    """
    trainer.versions = list(adapters)
    trainer.learner.load_state(LearnerState(adapter=dict(adapters[-1])))
    batch = trainer.batch(groups, config, "replay")
    trainer.learner.forward_backward(trainer.filled(batch.sequences, config), config.loss())
    parts = []
    for name, parameter in trainer.policy.parameters.items():
        assert parameter.grad is not None, f"the loss reaches every parameter, so {name} too"
        parts.append(parameter.grad.flatten().cpu())
    flat = torch.cat(parts).clone()
    metrics = trainer.learner.optim_step(learning_rate=0.0)
    wanted = ("loss/grad_norm", "loss/clip_fraction", "loss/ratio_mean")
    return flat, {name: metrics[name] for name in wanted if name in metrics}


def compared(own: Tensor, baseline: Tensor) -> dict[str, float]:
    """Return the cosine of the angle between two gradients, and the ratio of their lengths."""
    lengths = torch.linalg.vector_norm(own.double()), torch.linalg.vector_norm(baseline.double())
    if min(lengths) == 0:
        return {}
    cosine = torch.dot(own.double(), baseline.double()) / (lengths[0] * lengths[1])
    return {"cosine_to_baseline": float(cosine), "length_over_baseline": float(lengths[0] / lengths[1])}


def _measured(bench: Bench, version: int) -> Mapping[str, float]:
    return bench.ruler.measure(version, bench.trainer.versions[version]).record()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
