"""Routes of OpenAI's that this service has not built: each says what to do instead."""

from __future__ import annotations

from fastapi import APIRouter

from tandem.serve.api.auth import TrainCaller
from tandem.serve.finetuning.api.bodies import refuse

router = APIRouter(include_in_schema=False)


@router.post("/uploads")
def create_upload(caller: TrainCaller) -> None:
    """Reject an upload in parts: a file may be as large as the whole of such an upload here."""
    raise refuse(
        "file", "uploads in parts aren't supported; upload the whole file with POST /v1/files", "not_available"
    )


@router.api_route("/fine_tuning/checkpoints/{checkpoint:path}/permissions", methods=["GET", "POST"])
def list_or_create_permissions(checkpoint: str, caller: TrainCaller) -> None:
    """Reject the request: versions belong to their entity."""
    raise refuse("project_ids", "checkpoints can't be shared: each belongs to the entity of its key", "not_available")
