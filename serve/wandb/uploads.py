"""Uploads: an artifact is begun, its files are declared and sent to signed URLs, its manifest says that they are all,
and the commit checks them and turns the artifact into training data or into a version of a model."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from tandem.cluster.artifacts import ADAPTER_FILES
from tandem.serve.errors import ConflictError
from tandem.serve.names import NAME, NAME_RULE, quoted
from tandem.serve.store.store import Store
from tandem.serve.store.tables.wandb import WandbArtifactRow, WandbFileRow
from tandem.serve.store.uploads.wandb import DATA_FILES, NewArtifact
from tandem.serve.wandb.answers import MANIFEST_NAME, refused
from tandem.serve.wandb.execution import snake

DATA_METADATA = "metadata.json"
FILES_OF = {"dataset": (*DATA_FILES, DATA_METADATA), "lora": ADAPTER_FILES}
_COLLECTION = re.compile(r"\w[\w.-]{0,199}")
_UNSUPPORTED = {
    "description": "isn't kept; write it into the artifact's metadata",
    "distributedID": "artifacts that several processes write together aren't supported; log it from one",
    "labels": "aren't kept; use the artifact's metadata",
    "storageRegion": "the service has one store; leave it out",
    "ttlDurationSeconds": "artifacts don't expire here; leave it out",
}


def new_artifact(entity: str, wanted: Mapping[str, Any], metadata: Mapping[str, Any]) -> NewArtifact:
    """Return the artifact that a CreateArtifactInput asks for. Raises InvalidRequestError for what isn't supported."""
    for field, why in _UNSUPPORTED.items():
        if wanted.get(snake(field)) is not None:
            raise refused(field, why)
    if wanted.get("digest_algorithm") not in (None, "MANIFEST_MD5"):
        raise refused("digestAlgorithm", "must be MANIFEST_MD5")
    if (type := wanted["artifact_type_name"]) not in FILES_OF:
        raise refused(
            "artifactTypeName",
            f"artifacts of type {quoted(type)} aren't served here; the types are dataset (training data) and lora (the "
            "adapter of a model's version)",
        )
    names: Sequence[str] = wanted.get("artifact_collection_names") or ()
    collection = wanted.get("artifact_collection_name") or (names[0] if len(names) == 1 else "")
    if not _COLLECTION.fullmatch(collection):
        raise refused("artifactCollectionName", f"{quoted(collection)} must be {NAME_RULE.replace('128', '200')}")
    check_project(wanted["project_name"])
    return NewArtifact(
        entity,
        wanted["project_name"],
        collection,
        type,
        wanted["digest"],
        metadata,
        [alias["alias"] for alias in wanted.get("aliases") or ()],
        wanted.get("client_id"),
    )


def check_project(name: str) -> None:
    """Raises InvalidRequestError for a name that no project can have."""
    if not NAME.fullmatch(name):
        raise refused("projectName", f"{quoted(name)} must be {NAME_RULE}")


def committed_twin(store: Store, new: NewArtifact) -> WandbArtifactRow | None:
    """Return the newest version of a dataset if it has the same files: nothing needs to be uploaded then."""
    row = store.wandb.find(new.entity, new.project, new.collection) if new.type == "dataset" else None
    if row is None or row.digest != new.digest:
        return None
    rows = store.wandb.rows_digest(new.entity, new.project, new.collection)
    return row if rows and store.datasets.find(new.entity, rows) else None


def check_file_name(type: str, name: str) -> None:
    """Raises InvalidRequestError for a file that artifacts of this type don't have."""
    if name not in FILES_OF[type]:
        raise refused(
            "name", f"an artifact of type {type} may have the files {', '.join(FILES_OF[type])}, not {quoted(name)}"
        )


def check_md5(md5: str) -> str:
    """Return an MD5 in base64. Raises InvalidRequestError for anything else."""
    try:
        if len(base64.b64decode(md5, validate=True)) == 16:
            return md5
    except (binascii.Error, ValueError):
        pass
    raise refused("md5", "must be the 16 bytes of an MD5 in base64")


def manifest_entries(manifest: object) -> dict[str, str]:
    """Return name and MD5 of each file in a manifest that a client uploads. Raises InvalidRequestError."""
    match manifest:
        case {"version": 1, "contents": dict(contents)} if len(contents) <= len(FILES_OF["dataset"]):
            entries = {}
            for name, entry in contents.items():
                if not isinstance(entry, dict) or "ref" in entry or not isinstance(entry.get("digest"), str):
                    raise refused(
                        MANIFEST_NAME, f"{quoted(str(name))} isn't an uploaded file; references can't be read"
                    )
                entries[str(name)] = entry["digest"]
            return entries
    raise refused(MANIFEST_NAME, "isn't a manifest of version 1 with the few files that an artifact has here")


def check_complete(row: WandbArtifactRow, files: Sequence[WandbFileRow]) -> None:
    """Raises ConflictError, and says why, unless the artifact has all of its files and nothing but them."""
    if row.manifest is None:
        raise ConflictError(f"Artifact {row.collection} has no manifest yet. Upload it first.", "no_manifest")
    missing = sorted(
        {file.name for file in files if file.blob_key is None} | row.manifest.keys() - {f.name for f in files}
    )
    if missing:
        raise ConflictError(f"Artifact {row.collection} lacks {', '.join(missing)}. Upload it first.", "incomplete")
    if {file.name: file.md5 for file in files} != row.manifest or row.digest != digest_of(row.manifest):
        raise ConflictError(
            f"The manifest of artifact {row.collection} doesn't describe its files. Log the artifact again.",
            "manifest_mismatch",
        )
    names = {file.name for file in files}
    if row.type == "dataset" and len(names & set(DATA_FILES)) != 1:
        raise ConflictError(
            f"A dataset has its rows in one file, {' or '.join(DATA_FILES)}; this one has {sorted(names)}.", "no_rows"
        )
    if row.type == "lora" and names != set(ADAPTER_FILES):
        raise ConflictError(
            f"An adapter has the files {', '.join(ADAPTER_FILES)}; this one has {sorted(names)}.", "no_adapter"
        )


def digest_of(md5_of: Mapping[str, str]) -> str:
    """Return the digest of an artifact with these files, as the wandb package computes it."""
    lines = [f"{name}:{md5_of[name]}\n" for name in sorted(md5_of)]
    return hashlib.md5("".join(["wandb-artifact-manifest-v1\n", *lines]).encode()).hexdigest()
