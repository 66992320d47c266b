"""Route of tickets: URLs with which a browser downloads a file."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Depends

from tandem.serve.api.auth import InferCaller
from tandem.serve.api.bodies.json_body import Received, documented, json_body
from tandem.serve.api.services import ServicesDep
from tandem.serve.api.tickets import PARAMETER, VALID_FOR, Tickets
from tandem.serve.api.wire.requests import StartDownload
from tandem.serve.api.wire.responses import DownloadUrl

router = APIRouter(prefix="/preview/downloads", tags=["models"])


@router.post("", **documented(StartDownload))
def start_download(
    caller: InferCaller,
    body: Annotated[Received[StartDownload], Depends(json_body(StartDownload))],
    services: ServicesDep,
) -> DownloadUrl:
    """Return a URL that downloads a file without a key, for ten minutes: a link in a browser can't send one.

    It permits what the key permits: the route of the path checks role and entity, and a revoked key ends it.
    """
    path = body.value.path
    ticket = Tickets(services.store).make(caller.key_id, path)
    return DownloadUrl(
        url=f"{quote(path.lstrip('/'))}?{PARAMETER}={ticket}", expires_at=services.store.database.now() + VALID_FOR
    )
