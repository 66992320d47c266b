"""Accepts training jobs. Every job goes through here, whether a client posts it or a built-in algorithm makes it."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import BaseModel

from tandem.cluster.artifacts import PAYLOADS, Artifacts
from tandem.cluster.config import TandemConfig
from tandem.cluster.telemetry.context import TRACEPARENT, current_ids, logged_with
from tandem.rl.config import TrainingConfig
from tandem.serve.jobs.blobs import delete_blobs, stored
from tandem.serve.jobs.references import kl_reference
from tandem.serve.jobs.storage import storage_errors
from tandem.serve.store.policies.references import KlReference
from tandem.serve.store.store import Store
from tandem.serve.store.tables.training import DatasetRow, JobRow, ModelRow
from tandem.serve.store.training.repeats import Post

logger = logging.getLogger(__name__)


class PayloadCheck(Protocol):
    def __call__(self, base_model: str, payload_key: str, config: Any, policy: str) -> object:
        """Raise PayloadError, TrajectoryError, ConfigError or StageError for a payload that can't be trained on."""


@dataclass(frozen=True)
class OfferedJob:
    model: ModelRow
    config: BaseModel
    """The options, of the type that the kind has."""
    body_sha256: str
    payload: Callable[[str], object] | DatasetRow
    """Writes the body (JSON, zstd) to the blob of a key; or the dataset that the job trains on."""
    idempotency_key: str | None = None
    api_key_id: str | None = None
    """The key that sent the request; None for a job of the service itself."""
    kind: str = "rl"
    """A name in `cluster.jobs.kinds.registry`."""
    reference: KlReference | None = None
    """The reference version of a kind whose options name none."""


@dataclass(frozen=True)
class AcceptedJob:
    row: JobRow
    is_repeat: bool
    """An earlier request made the job."""


class JobAcceptance:
    """Turns an offered job into a durable one: a blob and a row. Returns only once both are stored."""

    def __init__(
        self, store: Store, artifacts: Artifacts, config: TandemConfig, check_payload: PayloadCheck | None = None
    ):
        """`check_payload` None: the caller has checked the trajectory groups already."""
        self._store, self._artifacts, self._check_payload = store, artifacts, check_payload
        self._limits, self._artifacts_root = config.limits, config.artifacts_root

    def accept(self, offered: OfferedJob, confirm: Callable[[], object]) -> AcceptedJob:
        """Return the accepted job; for a repeat (see `find_repeated`), the job that was accepted first.

        `confirm` is called last, before the row is written; an error that it raises withdraws the offer.

        Raises ConflictError for a repeated key with another body, QueueFullError, ConfigError for an option that can't
        be honoured, NotFoundError if the model was deleted, StorageFullError, UnavailableError, and the errors of
        `check_payload`.
        """
        model, config = offered.model, offered.config
        post = Post(offered.body_sha256, offered.idempotency_key, offered.api_key_id, self._limits.repeated_body_s)
        if repeated := self._store.jobs.find_repeated(model.id, post):
            return AcceptedJob(repeated, is_repeat=True)
        reference = offered.reference
        if isinstance(config, TrainingConfig):
            reference = kl_reference(config, self._artifacts_root)
        self._store.jobs.check_room(self._limits, model)  # `add_job` decides; this avoids storing a payload in vain
        job_id, ids = str(uuid.uuid4()), current_ids()
        with self._stored(job_id, offered.payload) as payload_key:
            if self._check_payload:
                with storage_errors():
                    self._check_payload(model.base_model, payload_key, config, model.path)
            confirm()
            job = self._store.jobs.add(
                job_id,
                model.id,
                payload_key,
                config.model_dump(mode="json", exclude_none=True),
                offered.body_sha256,
                offered.idempotency_key,
                reference,
                self._limits,
                offered.api_key_id,
                offered.kind,
                offered.payload.id if isinstance(offered.payload, DatasetRow) else None,
                request_id=_text(ids.get("request_id")),
                traceparent=_text(ids.get(TRACEPARENT)),
            )
            with logged_with(job_id=job.id, model_id=model.id):
                logger.info("Accepted job %s of %s", job.id, model.path)
        is_repeat = job.id != job_id  # the same request arrived twice at once, and the other one was first
        if is_repeat and not isinstance(offered.payload, DatasetRow):
            delete_blobs(self._artifacts, [payload_key])
        return AcceptedJob(job, is_repeat)

    def _stored(self, job_id: str, payload: Callable[[str], object] | DatasetRow) -> AbstractContextManager[str]:
        """Return a block with the key of the payload, which is deleted if the block fails. A dataset stays."""
        if isinstance(payload, DatasetRow):
            return nullcontext(payload.blob_key)
        return stored(self._artifacts, f"{PAYLOADS}/{job_id}.json.zst", payload)


def _text(id: str | int | None) -> str | None:
    return None if id is None else str(id)
