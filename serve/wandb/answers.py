"""The objects behind the types of the GraphQL schema. A field is an attribute or a method of the same name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from tandem.serve.errors import InvalidRequestError, Problem
from tandem.serve.wandb.ids import make_id, read_id
from tandem.serve.wandb.library import MAX_PAGE, Library
from tandem.serve.wandb.signed_urls import Grant, SignedUrls
from tandem.serve.wandb.sources import Source

MANIFEST_NAME = "wandb_manifest.json"
TTL_NEVER = -2
"""As W&B writes that an artifact doesn't expire."""


@dataclass(frozen=True)
class Desk:
    """What answers need: the artifacts of the caller's entity, and signed URLs for their files."""

    library: Library
    urls: SignedUrls

    def url(self, artifact_id: str, name: str) -> str:
        return self.urls.url(Grant("read", self.library.entity, artifact_id, name))


@dataclass(frozen=True)
class Entity:
    name: str
    organization: None = None
    xxhash_digests_enabled: bool = False

    @property
    def id(self) -> str:
        return make_id("Entity", self.name)


class User:
    """The caller's key, as a user whose team is its entity."""

    name: str
    email = ""
    admin = False
    flags = "{}"

    def __init__(self, entity: str):
        self.name = self.username = self.entity = entity
        self.id = make_id("Entity", entity)
        self.teams = connection([Entity(entity)])
        self.api_keys = connection([])  # another API lists them, for admins


class Project:
    """A project. It isn't stored: every name is one."""

    def __init__(self, desk: Desk, name: str):
        self._desk, self.name, self.entity = desk, name, Entity(desk.library.entity)
        self.id = self.internal_id = make_id("Project", self.entity.name, name)

    def run(self, name: str) -> None:
        """Runs aren't kept."""

    def bucket(self, name: str, missing_ok: bool | None = None) -> None:
        """Runs aren't kept, so none is ever resumed."""

    def artifact(self, name: str) -> Artifact | None:
        source = self._desk.library.find(self.name, name)
        return Artifact(self._desk, source) if source else None

    def artifact_type(self, name: str) -> ArtifactType | None:
        return ArtifactType(self._desk, self.name, name) if name in ("dataset", "lora") else None

    def artifact_collection(self, name: str) -> Collection | None:
        return Collection(self._desk, self.name, name) if self._desk.library.type_of(self.name, name) else None

    def artifact_collection_membership(self, name: str) -> Membership | None:
        source = self._desk.library.find(self.name, name)
        return Membership(self._desk, source) if source else None


@dataclass(frozen=True)
class ArtifactType:
    desk: Desk
    project: str
    name: str

    def artifact_collection(self, name: str) -> Collection | None:
        is_one = self.desk.library.type_of(self.project, name) == self.name
        return Collection(self.desk, self.project, name) if is_one else None


class Collection:
    """All versions of an artifact: those of a model, or of uploaded training data."""

    digest_algorithm = "MANIFEST_MD5"

    def __init__(self, desk: Desk, project: str, name: str):
        self._desk, self._project, self.name = desk, project, name
        self.id = make_id("Collection", desk.library.entity, project, name)

    @property
    def project(self) -> Project:
        return Project(self._desk, self._project)

    @property
    def latest_artifact(self) -> Artifact | None:
        source = self._desk.library.find(self._project, self.name)
        return Artifact(self._desk, source) if source else None

    def artifact_membership(self, alias_name: str) -> Membership | None:
        source = self._desk.library.find(self._project, f"{self.name}:{alias_name}")
        return Membership(self._desk, source) if source else None

    def artifacts(
        self, after: str | None = None, first: int | None = None, order: str | None = None, filters: str | None = None
    ) -> dict[str, Any]:
        """Return a page of versions, newest first."""
        if order:
            raise refused("order", "versions are listed newest first; leave it out")
        if json.loads(filters or "{}") not in ({}, {"state": "COMMITTED"}):
            raise refused("filters", "only {'state': 'COMMITTED'} is supported; filter in your program")
        limit, before = min(first or MAX_PAGE, MAX_PAGE), _cursor(after)
        sources = self._desk.library.page(self._project, self.name, limit + 1, before)
        page = [Artifact(self._desk, source) for source in sources[:limit]]
        edges = [
            {"node": node, "version": f"v{node.version_index}", "cursor": str(node.version_index)} for node in page
        ]
        return {
            "total_count": len(edges),
            "edges": edges,
            "page_info": {"has_next_page": len(sources) > limit, "end_cursor": edges[-1]["cursor"] if edges else None},
        }


class Membership:
    """A version in its collection."""

    def __init__(self, desk: Desk, source: Source):
        self._desk, self._source = desk, source
        self.artifact = Artifact(desk, source)
        self.id, self.version_index = self.artifact.id, source.version_index
        self.created_at, self.aliases = self.artifact.created_at, self.artifact.aliases

    @property
    def artifact_collection(self) -> Collection:
        return self.artifact.artifact_sequence

    def files(
        self, names: Sequence[str] | None = None, after: str | None = None, first: int | None = None
    ) -> dict[str, Any]:
        return self.artifact.files(names, after, first)


class Artifact:
    """One version of an artifact."""

    description = history_step = commit_hash = None
    tags: tuple[()] = ()
    ttl_duration_seconds = TTL_NEVER
    ttl_is_inherited = True

    def __init__(self, desk: Desk, source: Source):
        self._desk, self._source = desk, source
        self.id, self.version_index, self.digest = source.id, source.version_index, source.digest
        self.state = "COMMITTED" if source.is_committed else "PENDING"
        self.created_at = self.updated_at = w3c(source.created_at)

    @property
    def metadata(self) -> str:
        return json.dumps(self._source.metadata)

    @property
    def artifact_sequence(self) -> Collection:
        return Collection(self._desk, self._source.project, self._source.collection)

    @property
    def artifact_type(self) -> ArtifactType:
        return ArtifactType(self._desk, self._source.project, self._source.type)

    @property
    def aliases(self) -> list[dict[str, Any]]:
        sequence = self.artifact_sequence
        return [
            {"id": make_id("Alias", self.id, alias), "alias": alias, "artifact_collection": sequence}
            for alias in self._source.aliases
        ]

    @property
    def size(self) -> int:
        return sum(self._source.sizes.values())

    @property
    def file_count(self) -> int:
        return len(self._source.sizes)

    @property
    def current_manifest(self) -> dict[str, Any] | None:
        if not self._source.is_committed:
            return None
        return {"id": make_id("Manifest", self.id), "file": File(self._desk, self._source, MANIFEST_NAME)}

    def files(
        self, names: Sequence[str] | None = None, after: str | None = None, first: int | None = None
    ) -> dict[str, Any]:
        """Return all files, or those of these names. They are so few that one page has them all."""
        wanted = self._source.sizes if names is None else [name for name in names if name in self._source.sizes]
        return connection([File(self._desk, self._source, name) for name in wanted])

    def files_by_manifest_entries(
        self,
        storage_layout: str,
        manifest_version: str,
        entries: Sequence[dict[str, Any]] | None = None,
        storage_region: str | None = None,
    ) -> dict[str, Any]:
        wanted = [entry["name"] for entry in entries or () if entry["name"] in self._source.sizes]
        return connection([File(self._desk, self._source, name) for name in wanted])


class File:
    """A file that can be downloaded."""

    mimetype = upload_url = upload_multipart_urls = None
    upload_headers: tuple[()] = ()

    def __init__(self, desk: Desk, source: Source, name: str):
        self._desk, self._source = desk, source
        self.name = self.display_name = self.storage_path = name
        self.id = make_id("File", source.id, name)
        self.updated_at = w3c(source.created_at)

    @property
    def size_bytes(self) -> int:
        return self._source.sizes.get(self.name, 0)

    @cached_property
    def md5(self) -> str | None:
        info = self._source.files.get(self.name)
        return info.md5 if info else None

    @property
    def digest(self) -> str | None:
        return self.md5

    @property
    def url(self) -> str:
        return self.direct_url

    @property
    def direct_url(self) -> str:
        return self._desk.url(self._source.id, self.name)

    @property
    def artifact(self) -> Artifact:
        return Artifact(self._desk, self._source)


def connection(nodes: Iterable[object]) -> dict[str, Any]:
    """Return a whole list as a connection of one page."""
    edges = [{"node": node} for node in nodes]
    return {
        "total_count": len(edges),
        "edges": edges,
        "page_info": {"has_next_page": False, "end_cursor": None},
    }


def manifest_json(source: Source) -> dict[str, Any]:
    """Return the manifest of an artifact, in the form that the wandb package reads."""
    return {
        "version": 1,
        "storagePolicy": "wandb-storage-policy-v1",
        "storagePolicyConfig": {"storageLayout": "V2"},
        "contents": {
            name: {"digest": info.md5, "size": info.num_bytes, "birthArtifactID": source.id}
            for name, info in source.files.items()
        },
    }


def w3c(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def refused(field: str, why: str) -> InvalidRequestError:
    """Return the error for a field of an operation that can't be honoured."""
    return InvalidRequestError([Problem((field,), why)])


def artifact_row_id(id: str) -> str:
    """Return the id of an uploaded artifact in the store. Raises InvalidRequestError for the id of anything else."""
    kind, parts = read_id(id)
    if kind != "Artifact" or len(parts) != 1:
        raise refused("artifactID", "isn't the id of an artifact that is being uploaded")
    return parts[0]


def _cursor(after: str | None) -> int | None:
    if not after:
        return None
    if not (after.isascii() and after.isdigit() and len(after) < 10):
        raise refused("after", "isn't the cursor of a page of this list")
    return int(after)
