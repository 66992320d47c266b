"""The address of the service as a client wrote it, for the URLs in answers."""

from __future__ import annotations

from fastapi import Request

from tandem.serve.store.store import Store
from tandem.serve.wandb.signed_urls import SignedUrls


def signed_urls(request: Request, store: Store) -> SignedUrls:
    """Return the maker of signed URLs for the sender of this request."""
    return SignedUrls(store.wandb.url_secret(), _base(request), store.database.now())


def _base(request: Request) -> str:
    """Return scheme, host and port. A reverse proxy that ends TLS says so in a header, which only its client reads."""
    forwarded = request.headers.get("x-forwarded-proto", "")
    scheme = forwarded if forwarded in ("http", "https") else request.url.scheme
    return f"{scheme}://{request.url.netloc}"
