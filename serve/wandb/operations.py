"""The operations: a method for each field of the schema's Query and Mutation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tandem.serve.errors import NotFoundError
from tandem.serve.names import quoted
from tandem.serve.store.store import Store
from tandem.serve.wandb.answers import (
    MANIFEST_NAME,
    Artifact,
    Desk,
    Entity,
    Project,
    User,
    artifact_row_id,
    connection,
    refused,
)
from tandem.serve.wandb.commits import Commits
from tandem.serve.wandb.execution import snake
from tandem.serve.wandb.ids import make_id, read_id
from tandem.serve.wandb.signed_urls import Grant
from tandem.serve.wandb.uploads import check_file_name, check_md5, check_project, committed_twin, new_artifact


class Operations:
    """The root object of one request. Names of fields and arguments are those of the schema, in snake case."""

    def __init__(self, desk: Desk, store: Store, commits: Commits):
        self._desk, self._all, self._store, self._commits = desk, store, store.wandb, commits
        self._entity = desk.library.entity

    def viewer(self) -> User:
        return User(self._entity)

    def server_info(self) -> dict[str, Any]:
        return {"features": [], "cli_version_info": {}, "latest_local_version_info": None}

    def entity(self, name: str | None = None) -> Entity:
        self._check_entity(name)
        return Entity(self._entity)

    def project(self, name: str | None = None, entity_name: str | None = None) -> Project:
        self._check_entity(entity_name)
        check_project(name or "")
        return Project(self._desk, name or "")

    def model(self, name: str | None = None, entity_name: str | None = None) -> Project:
        """A project, under its oldest name."""
        return self.project(name, entity_name)

    def artifact(self, id: str) -> Artifact:
        return Artifact(self._desk, self._desk.library.by_id(id))

    def client_id_mapping(self, client_id: str) -> dict[str, str] | None:
        source = self._desk.library.of_client_id(client_id)
        return {"server_id": source.id} if source else None

    def upsert_bucket(self, input: dict[str, Any]) -> dict[str, Any]:
        """Answer as if a run had been created. It isn't kept, as the documentation says."""
        project, name = self.project(input.get("model_name"), input.get("entity_name")), input.get("name") or "run"
        bucket = {
            "id": make_id("Run", self._entity, project.name, name),
            "name": name,
            "display_name": input.get("display_name") or name,
            "config": input.get("config") or "{}",
            "project": project,
            "history_line_count": 0,
        }
        return {"bucket": bucket, "inserted": True}

    def create_run_files(self, input: dict[str, Any]) -> dict[str, Any]:
        """Return no URL for any file, so that the client keeps the files of its run to itself."""
        project = self.project(input["project_name"], input["entity_name"])
        return {
            "run_id": make_id("Run", self._entity, project.name, input["run_name"]),
            "upload_headers": [],
            "files": [],
        }

    def create_artifact(self, input: dict[str, Any]) -> dict[str, Any]:
        self._check_entity(input["entity_name"])
        new = new_artifact(self._entity, input, _object(input.get("metadata")))
        if new.type == "lora":
            self._desk.library.model(new.project, new.collection)
        row = committed_twin(self._all, new) if input.get("enable_digest_deduplication") else None
        return {"artifact": self.artifact(make_id("Artifact", (row or self._store.begin(new)).id))}

    def create_artifact_files(self, input: dict[str, Any]) -> dict[str, Any]:
        return {"files": connection([self._declared(file) for file in input["artifact_files"]])}

    def _declared(self, file: Mapping[str, Any]) -> dict[str, Any]:
        id, name, md5 = file["artifact_id"], file["name"], check_md5(file["md5"])
        if file.get("upload_parts_input"):
            raise refused("uploadPartsInput", f"{quoted(name)} is too large: files aren't accepted in parts")
        row = self._store.get(artifact_row_id(id), self._entity)
        check_file_name(row.type, name)
        self._store.declare_file(row.id, self._entity, name, md5)
        url = self._desk.urls.url(Grant("write", self._entity, id, name, md5))
        return {
            "id": make_id("File", row.id, name),
            "name": name,
            "storage_path": name,
            "upload_url": url,
            "upload_headers": [],
            "artifact": self.artifact(id),
        }

    def create_artifact_manifest(self, input: dict[str, Any]) -> dict[str, Any]:
        """Return the URL to which the manifest goes. Without a digest, the client asks only for an id."""
        self._check_entity(input["entity_name"])
        if input["type"] != "FULL" or input.get("base_artifact_id"):
            raise refused("type", "must be FULL: artifacts are uploaded whole")
        if input["name"] != MANIFEST_NAME:
            raise refused("name", f"must be {MANIFEST_NAME}")
        row = self._store.get(artifact_row_id(input["artifact_id"]), self._entity)
        file = {"id": make_id("File", row.id, MANIFEST_NAME), "name": MANIFEST_NAME, "upload_headers": []}
        if input["digest"]:
            grant = Grant("write", self._entity, input["artifact_id"], MANIFEST_NAME, check_md5(input["digest"]))
            file["upload_url"] = self._desk.urls.url(grant)
        return {"artifact_manifest": {"id": make_id("Manifest", row.id), "file": file}}

    def commit_artifact(self, input: dict[str, Any]) -> dict[str, Any]:
        self._commits.commit(artifact_row_id(input["artifact_id"]))
        return {"artifact": self.artifact(input["artifact_id"])}

    def update_artifact(self, input: dict[str, Any]) -> dict[str, Any]:
        """Replace the metadata. Nothing else of an artifact can change."""
        for field in ("description", "ttlDurationSeconds", "tagsToAdd", "tagsToDelete", "aliases"):
            if input.get(snake(field)):
                raise refused(field, "can't be changed; only the metadata of an artifact can")
        content = input.get("metadata")
        match read_id(input["artifact_id"]):
            case "Checkpoint", [model_id, step]:
                self.artifact(input["artifact_id"])  # which exists, and is the caller's
                if content is not None:
                    self._store.set_metadata(model_id, int(step), _object(content))
            case _:
                if content is not None:
                    row_id = artifact_row_id(input["artifact_id"])
                    self._store.set_artifact_metadata(row_id, self._entity, _object(content))
        return {"artifact": self.artifact(input["artifact_id"])}

    def _check_entity(self, name: str | None) -> None:
        check_entity(name or self._entity, self._entity)


def check_entity(name: str, own: str) -> None:
    """Raises NotFoundError for another entity than that of the caller's key."""
    if name != own:
        raise NotFoundError(
            f"The API key belongs to entity {own}, and sees nothing of entity {quoted(name)}. Use the entity of the "
            "key, or leave it out.",
            "entity_not_found",
            "entity",
        )


def _object(text: str | None) -> dict[str, Any]:
    """Return the JSON object in a JSONString. Raises InvalidRequestError."""
    try:
        value = json.loads(text or "{}", parse_constant=_refuse_constant)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise refused("metadata", "must be a JSON object without NaN and infinities")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(name)
