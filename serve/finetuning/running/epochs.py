"""The methods `supervised` and `dpo`: one training job for each epoch, so that each epoch makes a checkpoint.

An epoch is a permutation of the rows, which follows from the job's seed. The training jobs of a model run one after the
other and keep the optimizer's state, so that epochs are one training.
"""

from __future__ import annotations

import hashlib
import math
import uuid
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic_core import from_json, to_json

from tandem.cluster.payloads.compressed import compressor
from tandem.rl.preferences import config as preferences
from tandem.rl.preferences.config import PreferenceConfig
from tandem.rl.supervised import config as supervised
from tandem.rl.supervised.config import SupervisedConfig
from tandem.serve.finetuning.data.epochs import epoch_order
from tandem.serve.finetuning.data.row_file import RowFile
from tandem.serve.finetuning.running.context import JobContext
from tandem.serve.jobs.accept import OfferedJob
from tandem.serve.store.policies.references import KlReference, Step

KINDS = {"supervised": "sft", "dpo": "dpo"}
"""The kind of training job of each method."""
NOT_TRAINED = "parallel_tool_calls"
"""A field of rows that changes no token."""


class EpochTuning:
    """One claimed job of these methods."""

    def __init__(self, context: JobContext, rows: RowFile):
        self._context, self._rows = context, rows
        self._method: str = context.method["type"]
        self._numbers = context.method[self._method]["hyperparameters"]

    def run(self) -> None:
        """Train all epochs. Raises JobFailedError, and what `Supervision.wait` raises."""
        for epoch in range(self._numbers["n_epochs"]):
            training = self._context.training_job(epoch) or self._accept(epoch)
            self._context.following.follow(epoch, training)

    def _accept(self, epoch: int) -> str:
        options = self._options()
        about = f"{self._context.job.id}/{epoch}/{options.model_dump_json(exclude_none=True)}"
        reference = None
        if self._method == "dpo":  # of all epochs: the version from which the job starts
            reference = KlReference("reference", Step(self._context.first_step))
        return self._context.accept(
            OfferedJob(
                self._context.model,
                options,
                hashlib.sha256(about.encode()).hexdigest(),
                lambda key: self._write(key, epoch),
                self._context.job.key(epoch),
                kind=KINDS[self._method],
                reference=reference,
            )
        )

    def _options(self) -> BaseModel:
        size, multiplier = self._numbers["batch_size"], self._numbers["learning_rate_multiplier"]
        if self._method == "dpo":
            rate = preferences.DEFAULT_LEARNING_RATE * multiplier
            return PreferenceConfig(batch_size=size, learning_rate=rate, beta=float(self._numbers["beta"]))
        return SupervisedConfig(batch_size=size, learning_rate=supervised.DEFAULT_LEARNING_RATE * multiplier)

    def _write(self, key: str, epoch: int) -> None:
        """Write the rows of an epoch as the payload of a training job: JSON lines, zstd."""
        artifacts = self._context.services.artifacts
        path = artifacts.spool_dir / f"{uuid.uuid4()}.jsonl.zst"
        try:
            with open(path, "wb") as file, compressor().stream_writer(file) as lines:
                for index in epoch_order(len(self._rows), self._context.job.seed, epoch):
                    lines.write(_trained_part(from_json(self._rows.line(index))) + b"\n")
            artifacts.put_blob_file(path, key)
        finally:
            path.unlink(missing_ok=True)


def num_steps(method: Mapping[str, Any], num_rows: int) -> int:
    """Return the gradient steps of all epochs."""
    numbers = method[method["type"]]["hyperparameters"]
    return int(numbers["n_epochs"]) * math.ceil(num_rows / int(numbers["batch_size"]))


def _trained_part(row: dict[str, Any]) -> bytes:
    """Return a row without the fields that training doesn't know."""
    row.pop(NOT_TRAINED, None)
    if isinstance(row.get("input"), dict):
        row["input"].pop(NOT_TRAINED, None)
    return to_json(row)
