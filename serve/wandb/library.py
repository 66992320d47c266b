"""Finds the artifacts of an entity: by id, and by project, name and alias."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tandem.cluster.artifacts import Artifacts
from tandem.serve.errors import NotFoundError
from tandem.serve.store.store import Store
from tandem.serve.store.tables.training import ModelRow, VersionRow
from tandem.serve.store.tables.wandb import WandbArtifactRow
from tandem.serve.store.uploads.wandb import LATEST
from tandem.serve.wandb.ids import read_id
from tandem.serve.wandb.sources import ModelVersion, Source, Type, UploadedArtifact

MAX_PAGE = 100
_STEP = re.compile(r"(?:step|v)(\d{1,9})", re.ASCII)


class Library:
    def __init__(self, store: Store, artifacts: Artifacts, entity: str):
        self._store, self._artifacts, self.entity = store, artifacts, entity

    def by_id(self, id: str) -> Source:
        """Return an artifact. Raises NotFoundError."""
        match read_id(id):
            case "Checkpoint", [model_id, step] if step.isascii() and step.isdigit() and len(step) < 10:
                if version := self._version(self._store.models.get(model_id, self.entity), int(step)):
                    return version
            case "Artifact", [artifact_id]:
                return self._of_row(self._store.wandb.get(artifact_id, self.entity))
        raise NotFoundError(
            f"There is no artifact with id {id!r}: it was deleted, or belongs to another entity.", "artifact_not_found"
        )

    def of_client_id(self, client_id: str) -> Source | None:
        """Return the artifact that the client logged with this id of its own."""
        row = self._store.wandb.of_client_id(client_id, self.entity)
        return self._of_row(row) if row else None

    def type_of(self, project: str, collection: str) -> Type | None:
        """Return the type of the artifacts of this name, None if there are none."""
        if self._model(project, collection):
            return "lora"
        return "dataset" if self._store.wandb.committed(self.entity, project, collection, 1) else None

    def find(self, project: str, name: str) -> Source | None:
        """Return the artifact `collection:alias`. Aliases are vN, latest (also without any), those that the client
        gave, and for the versions of a model stepN."""
        collection, _, alias = name.partition(":")
        alias = alias or LATEST
        if model := self._model(project, collection):
            if alias == LATEST:
                newest = self._page_of(model, 1, None)
                return newest[0] if newest else None
            step = _STEP.fullmatch(alias)
            return self._version(model, int(step[1])) if step else None
        row = self._store.wandb.find(self.entity, project, name)
        return self._of_row(row) if row else None

    def page(self, project: str, collection: str, limit: int, before: int | None) -> Sequence[Source]:
        """Return committed versions of an artifact, newest first, those before the version number `before`."""
        if model := self._model(project, collection):
            return self._page_of(model, limit, before)
        rows = self._store.wandb.committed(self.entity, project, collection, limit, before)
        return [self._of_row(row) for row in rows]

    def model(self, project: str, name: str) -> ModelRow:
        """Return the model of this name. Raises NotFoundError."""
        if model := self._model(project, name):
            return model
        raise NotFoundError(
            f"There is no model {self.entity}/{project}/{name}, of which this adapter could become a version. Register "
            "the model first.",
            "model_not_found",
        )

    def _model(self, project: str, name: str) -> ModelRow | None:
        found = self._store.models.page(self.entity, 1, project=project, name=name)
        return found[0] if found else None

    def _version(self, model: ModelRow, step: int) -> Source | None:
        if step == 0:
            zero = self._store.versions.resolve(model.entity, model.project, model.name, 0)
            return ModelVersion(self._artifacts, model, 0, zero.digest, model.created_at, False, {})
        rows = self._store.versions.page(model.id, self.entity, 1, after=step - 1)
        return self._of_versions(model, rows)[0] if rows and rows[0].step == step else None

    def _page_of(self, model: ModelRow, limit: int, before: int | None) -> list[Source]:
        rows = self._store.versions.page(model.id, self.entity, limit, before, newest_first=True)
        return self._of_versions(model, rows)

    def _of_versions(self, model: ModelRow, rows: Sequence[VersionRow]) -> list[Source]:
        newest = self._store.versions.page(model.id, self.entity, 1, newest_first=True)
        metadata = self._store.wandb.metadata_of(model.id, [row.step for row in rows])
        return [
            ModelVersion(
                self._artifacts,
                model,
                row.step,
                row.digest,
                row.created_at,
                is_newest=row.step == newest[0].step,
                metadata=metadata.get(row.step, {}),
            )
            for row in rows
        ]

    def _of_row(self, row: WandbArtifactRow) -> Source:
        if row.model_id is not None and row.step is not None:  # the adapter has become a version
            version = self._version(self._store.models.get(row.model_id, self.entity), row.step)
            if version is None:
                raise NotFoundError(f"Version {row.step} of {row.collection} was deleted.", "artifact_not_found")
            return version
        newest = self._store.wandb.committed(row.entity, row.project, row.collection, 1)
        is_newest = bool(newest) and newest[0].id == row.id
        files = tuple(self._store.wandb.files(row.id))
        return UploadedArtifact(self._artifacts, self._store.datasets, row, files, is_newest)
