"""Routes of the page: `/`, its files under /assets, and the API's reference at /docs. They need no key: the files hold
no data, and everything that the page shows comes from the API, with the key of its user.

Every address in the page is relative, so that it works behind any prefix.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Match, Route
from starlette.types import Scope

from tandem.serve.errors import NotFoundError
from tandem.serve.names import quoted

DIST = Path(__file__).parent / "dist"
POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
FOR_A_YEAR = "public, max-age=31536000, immutable"  # a name has the hash of the content
MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".txt": "text/plain"}
CODINGS = (("br", ".br"), ("gzip", ".gz"))  # the best first
_MISSING = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>Tandem</title><meta name="viewport" content="width=device-width"></head>
<body>
<h1>Tandem is running</h1>
<p>The HTTP API works. This page isn't built: run <code>make web</code> in the checkout, or
<code>python -m tandem.serve.web.build</code>, where npm's registry can be reached; then load this page again.</p>
<p>The reference of the API as JSON: <a href="openapi.json">openapi.json</a></p>
</body>
</html>
"""


def add_routes(app: FastAPI) -> None:
    """Add the page to the service."""
    for path, endpoint in (("/", index), ("/docs", reference), ("/redoc", redoc), ("/assets/{name}", asset)):
        app.add_api_route(path, endpoint, methods=["GET", "HEAD"], include_in_schema=False, response_model=None)
    app.router.routes.append(_Prefix("/", _add_slash, include_in_schema=False))


def index(request: Request) -> Response:
    """Return the page."""
    return _page(request, "index.html")


def reference(request: Request) -> Response:
    """Return the API's reference, for people."""
    return _page(request, "docs.html")


def redoc() -> Response:
    """Redirect to the one reference that there is."""
    return RedirectResponse("docs", 308, HEADERS)


def asset(request: Request, name: str) -> Response:
    """Return a file of the page, compressed if the browser accepts that."""
    file = DIST / "assets" / name
    media_type = MEDIA_TYPES.get(file.suffix)
    if media_type is None or not re.fullmatch(r"[\w.-]+", name, re.ASCII) or not file.is_file():
        raise NotFoundError(f"The page has no file {quoted(name)}. Load the page again.", "asset_not_found", "name")
    headers = {"cache-control": FOR_A_YEAR, "vary": "accept-encoding"}
    for coding, suffix in CODINGS:
        compressed = file.with_name(f"{name}{suffix}")
        if _accepts(request.headers.get("accept-encoding", ""), coding) and compressed.is_file():
            file, headers["content-encoding"] = compressed, coding
            break
    return _answer(request, file.read_bytes(), media_type, headers)


def _page(request: Request, name: str) -> Response:
    try:
        content = (DIST / name).read_bytes()
    except FileNotFoundError:
        return HTMLResponse(_MISSING, headers=HEADERS | {"cache-control": "no-store"})
    return _answer(request, content, "text/html", {"cache-control": "no-cache"})


def _answer(request: Request, content: bytes, media_type: str, headers: dict[str, str]) -> Response:
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = HEADERS | headers | {"etag": etag}
    known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=media_type, headers=headers)


def _accepts(header: str, coding: str) -> bool:
    """Return True if Accept-Encoding names the coding, and not with quality 0."""
    for item in header.lower().split(","):
        name, _, options = item.partition(";")
        if name.strip() == coding:
            return not re.fullmatch(r"\s*q\s*=\s*0(\.0*)?\s*", options)
    return False


class _Prefix(Route):
    """Fits the prefix itself (`/tandem`), from where the page's relative addresses would lead to another place."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        prefix = scope.get("root_path", "")
        is_prefix = scope["type"] == "http" and prefix not in ("", "/") and scope["path"] in ("", prefix)
        return (Match.FULL, {"endpoint": self.endpoint}) if is_prefix else (Match.NONE, {})


def _add_slash(request: Request) -> Response:
    last = request.scope["root_path"].rpartition("/")[2]
    return RedirectResponse(f"{quote(last)}/", 307, HEADERS)
