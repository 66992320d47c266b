"""Signed URLs with the address of the service as a client wrote it."""

from __future__ import annotations

from fastapi import Request

from tandem.serve.api.addresses import service_address
from tandem.serve.store.store import Store
from tandem.serve.wandb.signed_urls import SignedUrls


def signed_urls(request: Request, store: Store) -> SignedUrls:
    """Return the maker of signed URLs for the sender of this request."""
    return SignedUrls(store.wandb.url_secret(), service_address(request), store.database.now())
