"""Downloads of checkpoints: adapters in PEFT's files, by URLs that need no key for an hour.

This client fetches files with a plain request, so a URL stands for the key that asked for it. It ends with the key, and
with the checkpoint.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse

from tandem.cluster.artifacts import ADAPTER_FILES
from tandem.serve.adapters.archive import Content, adapter_archive, adapter_file
from tandem.serve.api.addresses import service_address
from tandem.serve.api.auth import Caller, TrainCaller
from tandem.serve.api.downloads import download
from tandem.serve.api.signed_tokens import SignedTokens, invalid_url
from tandem.serve.errors import AuthenticationError, UnavailableError
from tandem.serve.tinker.api.context import Tinker, TinkerDep
from tandem.serve.tinker.api.rest.checkpoints import OF_RUN, path_of
from tandem.serve.tinker.wire.rest import ExternalWeights

logger = logging.getLogger(__name__)
router = APIRouter(tags=["tinker"])
open_router = APIRouter(prefix="/tinker", include_in_schema=False)
"""Of routes whose path carries a signature instead of a key."""
VALID_FOR = timedelta(hours=1)
TAR = "application/x-tar"
ARCHIVE = "checkpoint.tar"


@router.get(f"{OF_RUN}/external_weights_urls")
def external_weights_urls(
    request: Request, run_id: str, checkpoint_id: str, caller: TrainCaller, tinker: TinkerDep
) -> ExternalWeights:
    """Return a URL for each file of a checkpoint's adapter."""
    links = _Links(request, tinker, caller, path_of(run_id, checkpoint_id))
    return ExternalWeights(urls={name: links.url(name) for name in ADAPTER_FILES}, expires=links.expires_at)


@router.get(f"{OF_RUN}/archive", response_class=Response, status_code=302)
def get_archive(
    request: Request, run_id: str, checkpoint_id: str, caller: TrainCaller, tinker: TinkerDep
) -> RedirectResponse:
    """Redirect to a tar archive of a checkpoint's adapter, in PEFT's files."""
    links = _Links(request, tinker, caller, path_of(run_id, checkpoint_id))
    headers = {"expires": links.expires_at.strftime("%a, %d %b %Y %H:%M:%S GMT")}
    return RedirectResponse(links.url(ARCHIVE), 302, headers)


class _Links:
    """The URLs of a checkpoint's files. Raises NotFoundError without such a checkpoint."""

    def __init__(self, request: Request, tinker: Tinker, caller: Caller, path: str):
        tinker.store.checkpoints.resolve(caller.entity, path)
        self._base, self._tokens = service_address(request), _tokens(tinker)
        self._allowed = {"key": caller.key_id, "path": path}
        self.expires_at: datetime = tinker.services.store.database.now() + VALID_FOR

    def url(self, name: str) -> str:
        return f"{self._base}/tinker/files/{self._tokens.make({**self._allowed, 'file': name}, VALID_FOR)}/{name}"


@open_router.get("/files/{token}/{name}", response_class=Response)
@open_router.head("/files/{token}/{name}", response_class=Response)
def get_file(request: Request, token: str, name: str, tinker: TinkerDep) -> Response:
    """Return the file that a URL stands for."""
    allowed = _tokens(tinker).read(token)
    if allowed["file"] != name:
        raise invalid_url()
    key = tinker.services.store.keys.get(allowed["key"])
    if key.revoked_at is not None:
        raise AuthenticationError("The API key that asked for this URL was revoked.")
    found = tinker.store.checkpoints.resolve(key.entity, allowed["path"])
    file: str = allowed["file"]
    content = _content(tinker, found.digest, file)
    media_type = (
        TAR if file == ARCHIVE else "application/json" if file.endswith(".json") else "application/octet-stream"
    )
    return download(request, content, found.digest, {}, media_type)


def _content(tinker: Tinker, digest: str, file: str) -> Content:
    artifacts = tinker.services.artifacts
    try:
        return adapter_archive(artifacts, digest) if file == ARCHIVE else adapter_file(artifacts, digest, file)[0]
    except OSError as error:
        logger.error("The files of checkpoint %s can't be read", digest, exc_info=True)
        raise UnavailableError(
            "The artifact store can't give the files of this checkpoint. Try again in a moment.",
            "artifact_store_unavailable",
        ) from error


def _tokens(tinker: Tinker) -> SignedTokens:
    store = tinker.services.store
    return SignedTokens(store.wandb.url_secret(), "tinker", store.database.now())
