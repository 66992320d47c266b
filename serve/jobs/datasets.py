"""Datasets of supervised data: stored once for an entity, and found by the address that a job names."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from tandem.cluster.artifacts import Artifacts, dataset_key
from tandem.cluster.payloads.rows import RowCounts
from tandem.serve.errors import InvalidRequestError, NotFoundError, Problem
from tandem.serve.jobs.blobs import delete_blobs, stored
from tandem.serve.jobs.storage import storage_errors
from tandem.serve.names import DATASET_SCHEME, quoted
from tandem.serve.store.store import Store
from tandem.serve.store.tables.training import DatasetRow
from tandem.serve.store.uploads.datasets import NewDataset

_DATASET = re.compile(rf"{DATASET_SCHEME}([0-9a-f]{{64}})")
_ARTIFACT = re.compile(r"wandb-artifact:///([^/:]+)/([^/:]+)/([^/:]+:[^/:]+)")
_LOCATION = ("body", "training_data_url")


class ReceivedFile(Protocol):
    """Received data as a local file (zstd)."""

    path: Path

    @property
    def sha256(self) -> str:
        """Of the uncompressed data."""

    @property
    def num_bytes(self) -> int:
        """Of the uncompressed data."""


class RowCheck(Protocol):
    def __call__(self, dataset_key: str) -> RowCounts:
        """Raise PayloadError or StageError for data that isn't rows of messages."""


def store_dataset(
    store: Store,
    artifacts: Artifacts,
    file: ReceivedFile,
    entity: str,
    count_rows: RowCheck,
    confirm: Callable[[], object] = lambda: None,
) -> DatasetRow:
    """Store JSON lines durably and return their dataset, which may be an earlier one with the same content.

    `confirm` is called last, before the row is written; an error that it raises withdraws the upload.

    Raises InvalidRequestError for data without rows, StorageFullError, UnavailableError, and the errors of
    `count_rows`.
    """
    if existing := store.datasets.find(entity, file.sha256):
        return existing
    dataset_id = str(uuid.uuid4())
    with stored(artifacts, dataset_key(dataset_id), partial(artifacts.put_blob_file, file.path)) as key:
        with storage_errors():
            counts = count_rows(key)
        if not counts.num_rows:
            message = "has no rows; send JSON lines, each an object with messages"
            raise InvalidRequestError([Problem(("body",), message)], "empty_dataset")
        confirm()
        new = NewDataset(dataset_id, entity, file.sha256, key, counts.num_rows, file.num_bytes, counts.ignored_fields)
        row = store.datasets.add(new)
    if row.id != dataset_id:  # the same data arrived twice at once, and the other upload was first
        delete_blobs(artifacts, [key])
    return row


def find_dataset(store: Store, url: str, entity: str) -> DatasetRow:
    """Return the entity's dataset that a job's `training_data_url` names.

    Raises InvalidRequestError for an address of another kind: the service fetches nothing on a caller's word. Raises
    NotFoundError if there is no such dataset.
    """
    if found := _DATASET.fullmatch(url):
        return _existing(store, found[1], entity)
    if found := _ARTIFACT.fullmatch(url):
        return _existing(store, _artifact_digest(store, entity, found[1], found[2], found[3]), entity)
    scheme = url.partition(":")[0] if ":" in url else ""
    if scheme in ("tandem-dataset", "wandb-artifact"):
        expected = (
            "tandem-dataset:///DIGEST, the url of an uploaded dataset, or wandb-artifact:///ENTITY/PROJECT/NAME:v0"
        )
        raise InvalidRequestError([Problem(_LOCATION, f"must be {expected}")], "invalid_training_data_url")
    message = (
        f"{quoted(scheme)} addresses aren't fetched: the service reads no data from elsewhere. Upload the JSON lines "
        "with POST /v1/preview/datasets, and send the url of its answer"
    )
    raise InvalidRequestError([Problem(_LOCATION, message)], "foreign_training_data_url")


def _existing(store: Store, digest: str | None, entity: str) -> DatasetRow:
    row = None if digest is None else store.datasets.find(entity, digest)
    if row is None:
        raise NotFoundError(
            f"Entity {entity!r} has no dataset at this address: it was deleted, or it was never uploaded here. Upload "
            "the JSON lines with POST /v1/preview/datasets, and send the url of its answer.",
            "dataset_not_found",
            "training_data_url",
        )
    return row


def _artifact_digest(store: Store, entity: str, owner: str, project: str, name: str) -> str | None:
    """Return the digest of the rows that a client uploaded as an artifact, None if there is no such artifact."""
    return store.wandb.rows_digest(entity, project, name) if owner == entity else None
