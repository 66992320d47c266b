"""The tables of artifacts that clients upload through the W&B API."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from tandem.serve.store.tables.training import Table

_ID = String(36)
_NAME = String(128)
_DIGEST = String(64)


class WandbArtifactRow(Table):
    """An artifact that a client uploads or has uploaded: training data, or an adapter that became a version."""

    __tablename__ = "wandb_artifacts"
    __table_args__ = (
        UniqueConstraint("entity", "project", "collection", "version_index", name="wandb_artifacts_version"),
        Index("wandb_artifacts_client", "entity", "client_id"),
    )

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    entity: Mapped[str] = mapped_column(_NAME)
    project: Mapped[str] = mapped_column(_NAME)
    collection: Mapped[str] = mapped_column(String(255))
    """The name of the artifact, without its version."""
    type: Mapped[str] = mapped_column(String(16))
    """dataset or lora."""
    client_id: Mapped[str | None] = mapped_column(String(255))
    digest: Mapped[str] = mapped_column(_DIGEST)
    """As the client computes it, from the names and MD5 of all files."""
    artifact_metadata: Mapped[dict[str, Any]]
    aliases: Mapped[list[str]] = mapped_column(JSON)
    """Those that the client gave; `latest` and `vN` aren't stored."""
    manifest: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))
    """Name to MD5 of each file, as the client's manifest lists them."""
    version_index: Mapped[int | None]
    """Counts the committed versions of a dataset from 0."""
    model_id: Mapped[str | None] = mapped_column(ForeignKey("models.id"))
    """The model of which a committed adapter became a version."""
    step: Mapped[int | None]
    created_at: Mapped[datetime]
    committed_at: Mapped[datetime | None]


class WandbFileRow(Table):
    """A file of an artifact that is being uploaded or was uploaded."""

    __tablename__ = "wandb_files"

    artifact_id: Mapped[str] = mapped_column(ForeignKey("wandb_artifacts.id"), primary_key=True)
    name: Mapped[str] = mapped_column(_NAME, primary_key=True)
    md5: Mapped[str] = mapped_column(String(24))
    """Base64, as the client declared it and the service has checked it."""
    blob_key: Mapped[str | None] = mapped_column(_NAME)
    """None until the file is uploaded."""
    sha256: Mapped[str | None] = mapped_column(_DIGEST)
    num_bytes: Mapped[int | None] = mapped_column(BigInteger)


class WandbMetadataRow(Table):
    """The metadata that a client stored with the artifact of a version."""

    __tablename__ = "wandb_metadata"

    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"), primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    content: Mapped[dict[str, Any]]


class UrlSecretRow(Table):
    """The secret that signs URLs: one row, made by the first process that needs it."""

    __tablename__ = "url_secrets"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    secret: Mapped[str] = mapped_column(String(64))
