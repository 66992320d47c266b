"""Artifacts that clients upload through the W&B API."""

from __future__ import annotations

import re
import secrets
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, delete, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from tandem.serve.errors import ConflictError, NotFoundError
from tandem.serve.store.database import Database, Lock
from tandem.serve.store.tables.training import DatasetRow
from tandem.serve.store.tables.wandb import UrlSecretRow, WandbArtifactRow, WandbFileRow, WandbMetadataRow

LATEST = "latest"
DATA_FILES = ("train.jsonl", "trajectories.jsonl")
"""The names that the rows of a dataset may have."""
MAX_LISTED = 100
"""Versions among which an alias of the client is looked up, from the newest on."""
_INDEX = re.compile(r"v(\d{1,9})", re.ASCII)
MAX_FILES = 8
"""Of one artifact: training data has one file and its metadata, an adapter two."""
MAX_FORGOTTEN = 500
"""Artifacts that one sweep deletes; the next one continues."""


@dataclass(frozen=True)
class NewArtifact:
    entity: str
    project: str
    collection: str
    type: str
    digest: str
    metadata: Mapping[str, Any]
    aliases: Sequence[str]
    client_id: str | None


@dataclass(frozen=True)
class StoredFile:
    """The contents of an uploaded file."""

    blob_key: str
    sha256: str
    num_bytes: int


class WandbArtifacts:
    """For a caller, artifacts of other entities don't exist."""

    def __init__(self, database: Database):
        self._database = database

    def url_secret(self) -> bytes:
        """Return the secret that signs URLs, the same for all processes of the service."""
        if (secret := self._find_secret()) is None:
            with suppress(IntegrityError):  # another process was quicker
                with self._database.write() as session:
                    session.add(UrlSecretRow(id=1, secret=secrets.token_hex(32)))
            secret = self._find_secret()
        assert secret is not None
        return bytes.fromhex(secret)

    def _find_secret(self) -> str | None:
        with self._database.read() as session:
            return session.scalar(select(UrlSecretRow.secret))

    def begin(self, new: NewArtifact) -> WandbArtifactRow:
        """Add an artifact whose files are still to come, and return its row."""
        row = WandbArtifactRow(
            id=str(uuid.uuid4()),
            entity=new.entity,
            project=new.project,
            collection=new.collection,
            type=new.type,
            client_id=new.client_id,
            digest=new.digest,
            artifact_metadata=dict(new.metadata),
            aliases=list(new.aliases),
            created_at=self._database.now(),
        )
        with self._database.write() as session:
            session.add(row)
        return row

    def get(self, artifact_id: str, entity: str) -> WandbArtifactRow:
        """Return an artifact. Raises NotFoundError."""
        with self._database.read() as session:
            return _find(session, artifact_id, entity)

    def of_client_id(self, client_id: str, entity: str) -> WandbArtifactRow | None:
        """Return the artifact to which the client gave this id."""
        query = select(WandbArtifactRow).where(WandbArtifactRow.entity == entity)
        query = query.where(WandbArtifactRow.client_id == client_id).order_by(WandbArtifactRow.created_at.desc())
        with self._database.read() as session:
            return session.scalar(query.limit(1))

    def committed(
        self, entity: str, project: str, collection: str, limit: int | None = None, before: int | None = None
    ) -> Sequence[WandbArtifactRow]:
        """Return the committed versions of a dataset, newest first, those before version `before`."""
        row = WandbArtifactRow
        query = select(row).where(row.entity == entity, row.project == project, row.collection == collection)
        query = query.where(row.version_index.is_not(None)).order_by(row.version_index.desc()).limit(limit)
        if before is not None:
            query = query.where(row.version_index < before)
        with self._database.read() as session:
            return session.scalars(query).all()

    def find(self, entity: str, project: str, name: str) -> WandbArtifactRow | None:
        """Return the committed dataset `collection:alias`. Aliases are vN, those that the client gave, and latest."""
        collection, _, alias = name.partition(":")
        if alias in ("", LATEST):
            rows = self.committed(entity, project, collection, 1)
        elif index := _INDEX.fullmatch(alias):
            rows = self.committed(entity, project, collection, 1, before=int(index[1]) + 1)
            rows = [row for row in rows if row.version_index == int(index[1])]
        else:
            rows = [row for row in self.committed(entity, project, collection, MAX_LISTED) if alias in row.aliases]
        return rows[0] if rows else None

    def rows_digest(self, entity: str, project: str, name: str) -> str | None:
        """Return the SHA-256 of the rows in the dataset `collection:alias`, None if there is no such dataset."""
        row = self.find(entity, project, name)
        files = self.files(row.id) if row else ()
        return next((file.sha256 for file in files if file.name in DATA_FILES), None)

    def files(self, artifact_id: str) -> Sequence[WandbFileRow]:
        """Return the files of an artifact by name."""
        query = select(WandbFileRow).where(WandbFileRow.artifact_id == artifact_id).order_by(WandbFileRow.name)
        with self._database.read() as session:
            return session.scalars(query).all()

    def declare_file(self, artifact_id: str, entity: str, name: str, md5: str) -> None:
        """Record that a file will be uploaded. Declaring it again is no error. Raises NotFoundError, ConflictError."""
        with self._database.write() as session:
            _find_open(session, artifact_id, entity)
            if known := session.get(WandbFileRow, (artifact_id, name)):
                if known.md5 != md5:
                    raise ConflictError(
                        f"{name} was declared with another MD5. Begin the artifact again.", "md5_changed"
                    )
                return
            count = select(func.count()).select_from(WandbFileRow).where(WandbFileRow.artifact_id == artifact_id)
            if (session.scalar(count) or 0) >= MAX_FILES:
                raise ConflictError(f"An artifact may have up to {MAX_FILES} files here.", "too_many_files")
            session.add(WandbFileRow(artifact_id=artifact_id, name=name, md5=md5))

    def find_file(self, artifact_id: str, entity: str, name: str) -> WandbFileRow:
        """Return a declared file. Raises NotFoundError."""
        with self._database.read() as session:
            return _find_file(session, artifact_id, entity, name)

    def store_file(self, artifact_id: str, entity: str, name: str, stored: StoredFile) -> WandbFileRow:
        """Record the contents of a file, and return its row, which has those of an earlier upload if there was one.

        Raises NotFoundError, ConflictError.
        """
        with self._database.write() as session:
            _find_open(session, artifact_id, entity)
            row = _find_file(session, artifact_id, entity, name)
            if row.blob_key is None:
                row.blob_key, row.sha256, row.num_bytes = stored.blob_key, stored.sha256, stored.num_bytes
            return row

    def set_manifest(self, artifact_id: str, entity: str, md5_of: Mapping[str, str]) -> None:
        """Record name and MD5 of each file as the client's manifest lists them. Raises NotFoundError, ConflictError."""
        with self._database.write() as session:
            _find_open(session, artifact_id, entity).manifest = dict(md5_of)

    def commit_dataset(self, artifact_id: str, entity: str) -> WandbArtifactRow:
        """Make the artifact the next version of its name, once its rows are a dataset. Raises NotFoundError."""
        with self._database.write() as session:
            self._database.lock(session, Lock.NUMBER_ARTIFACTS)
            row = _find(session, artifact_id, entity, lock=True)
            if row.committed_at is None:
                newest = select(func.max(WandbArtifactRow.version_index)).where(
                    WandbArtifactRow.entity == row.entity,
                    WandbArtifactRow.project == row.project,
                    WandbArtifactRow.collection == row.collection,
                )
                found = session.scalar(newest)
                row.version_index = 0 if found is None else found + 1
                row.committed_at = self._database.now()
                for file in session.scalars(_files_of(artifact_id).where(WandbFileRow.name.in_(DATA_FILES))):
                    file.blob_key = None
            return row

    def commit_adapter(self, artifact_id: str, entity: str, model_id: str, step: int) -> WandbArtifactRow:
        """Record that the adapter became this version. Raises NotFoundError."""
        with self._database.write() as session:
            row = _find(session, artifact_id, entity, lock=True)
            row.model_id, row.step, row.committed_at = model_id, step, self._database.now()
            for file in session.scalars(_files_of(artifact_id)):
                file.blob_key = None
            return row

    def metadata_of(self, model_id: str, steps: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Return the metadata of those versions that have some."""
        query = select(WandbMetadataRow).where(WandbMetadataRow.model_id == model_id, WandbMetadataRow.step.in_(steps))
        with self._database.read() as session:
            return {row.step: row.content for row in session.scalars(query)}

    def set_metadata(self, model_id: str, step: int, content: Mapping[str, Any]) -> None:
        """Replace the metadata of a version."""
        with self._database.write() as session:
            session.merge(WandbMetadataRow(model_id=model_id, step=step, content=dict(content)))

    def set_artifact_metadata(self, artifact_id: str, entity: str, content: Mapping[str, Any]) -> WandbArtifactRow:
        """Replace the metadata of an artifact. Raises NotFoundError."""
        with self._database.write() as session:
            row = _find(session, artifact_id, entity, lock=True)
            row.artifact_metadata = dict(content)
            return row

    def forget_unused(self, begun_before: datetime) -> None:
        """Delete artifacts that were begun before then and are of no use: those that were never committed, and those
        whose dataset was deleted. Their blobs then belong to no file."""
        row, file = WandbArtifactRow, WandbFileRow
        dataset = select(DatasetRow.id).where(DatasetRow.entity == row.entity, DatasetRow.digest == file.sha256)
        rows_are_gone = (
            select(file.name)
            .where(file.artifact_id == row.id, file.name.in_(DATA_FILES), ~dataset.exists())
            .correlate(row)
            .exists()
        )
        useless = row.committed_at.is_(None) | ((row.type == "dataset") & rows_are_gone)
        with self._database.write() as session:
            old = select(row.id).where(row.created_at < begun_before, useless).limit(MAX_FORGOTTEN)
            ids = session.scalars(old.with_for_update()).all()
            session.execute(delete(file).where(file.artifact_id.in_(ids)))
            session.execute(delete(row).where(row.id.in_(ids)))

    def unknown_blobs(self, keys: Sequence[str]) -> list[str]:
        """Return the keys that belong to no file."""
        with self._database.read() as session:
            known = set(session.scalars(select(WandbFileRow.blob_key).where(WandbFileRow.blob_key.is_not(None))))
        return [key for key in keys if key not in known]


def _files_of(artifact_id: str) -> Select[WandbFileRow]:
    return select(WandbFileRow).where(WandbFileRow.artifact_id == artifact_id)


def _find(session: Session, artifact_id: str, entity: str, lock: bool = False) -> WandbArtifactRow:
    query = select(WandbArtifactRow).where(WandbArtifactRow.id == artifact_id, WandbArtifactRow.entity == entity)
    row = session.scalar(query.with_for_update() if lock else query)
    if row is None:
        raise NotFoundError(
            f"There is no artifact {artifact_id}: it was never finished, or belongs to another entity.",
            "artifact_not_found",
        )
    return row


def _find_open(session: Session, artifact_id: str, entity: str) -> WandbArtifactRow:
    row = _find(session, artifact_id, entity, lock=True)
    if row.committed_at is not None:
        raise ConflictError(
            f"Artifact {row.collection} is complete and can't change. Log a new one.", "artifact_committed"
        )
    return row


def _find_file(session: Session, artifact_id: str, entity: str, name: str) -> WandbFileRow:
    _find(session, artifact_id, entity)
    row = session.get(WandbFileRow, (artifact_id, name))
    if row is None:
        raise NotFoundError(f"The artifact has no file {name!r}.", "file_not_found")
    return row
