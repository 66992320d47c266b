"""The address of the service as a client wrote it, for the URLs in answers, and where that client is."""

from __future__ import annotations

from fastapi import Request

LOOPBACK = ("127.", "::1", "::ffff:127.")


def service_address(request: Request) -> str:
    """Return scheme, host and port. A reverse proxy that ends TLS says so in a header, which only its client reads."""
    forwarded = request.headers.get("x-forwarded-proto", "")
    scheme = forwarded if forwarded in ("http", "https") else request.url.scheme
    return f"{scheme}://{request.url.netloc}"


def is_on_this_machine(request: Request) -> bool:
    """Return True if the client connects over the loopback interface, as far as proxies say.

    Only advice can depend on it: a client of a tunnel looks the same.
    """
    if request.headers.get("x-forwarded-for") or request.headers.get("forwarded"):
        return False
    return request.client is not None and request.client.host.startswith(LOOPBACK)
