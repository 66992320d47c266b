"""The proxy for the service's URL, from HTTP_PROXY, HTTPS_PROXY, ALL_PROXY and NO_PROXY.

httpx reads these too, but it fails at a SOCKS proxy even where NO_PROXY excludes it, and its errors don't say that a
proxy was asked.
"""

from __future__ import annotations

import ipaddress
import os
import urllib.request
from dataclasses import dataclass
from typing import Any

import httpx

from tandem.client.address import is_loopback
from tandem.client.errors import SettingsError


@dataclass(frozen=True)
class Proxy:
    """A proxy and the environment variable that names it."""

    variable: str
    url: str

    @property
    def shown(self) -> str:
        """The proxy for messages: without user and password."""
        scheme, _, rest = self.url.partition("://")
        return f"{scheme}://{rest.rpartition('@')[2]} ({self.variable})"


def asked(url: httpx.URL | str) -> str:
    """Return a remark for errors of requests to `url`: the proxy that was asked, if any, and how to avoid it."""
    proxy = proxy_for(url)
    return f"; the proxy {proxy.shown} was asked, NO_PROXY={httpx.URL(url).host} avoids it" if proxy else ""


def proxy_for(url: httpx.URL | str) -> Proxy | None:
    """Return the proxy for requests to `url`. Loopback addresses are always reached directly."""
    parsed = httpx.URL(url)
    if is_loopback(parsed.host) or _is_excluded(parsed.host, parsed.port):
        return None
    for name in (f"{parsed.scheme}_proxy", "all_proxy"):
        for variable in (name, name.upper()):
            if address := os.environ.get(variable, "").strip():
                return Proxy(variable, address if "://" in address else f"http://{address}")
    return None


def http_options(url: str) -> dict[str, Any]:
    """Return the options of an httpx client of the service at `url`. Raise SettingsError for an unusable proxy."""
    proxy = proxy_for(url)
    options: dict[str, Any] = {"trust_env": False}
    if url.startswith("https:"):
        try:
            options["verify"] = httpx.create_ssl_context()
        except OSError as error:  # ssl.SSLError is one
            raise SettingsError(f"The certificates of SSL_CERT_FILE or SSL_CERT_DIR can't be read: {error}.") from None
    if proxy is None:
        return options
    try:
        options["proxy"] = httpx.Proxy(proxy.url)
        httpx.HTTPTransport(proxy=options["proxy"]).close()
    except ImportError:
        raise SettingsError(
            f"The SOCKS proxy {proxy.shown} needs a package: pip install 'httpx[socks]'. To reach {url} directly, add "
            f"{httpx.URL(url).host} to NO_PROXY."
        ) from None
    except (ValueError, httpx.InvalidURL):
        raise SettingsError(
            f"{proxy.variable} isn't the URL of a proxy. Correct it, or add {httpx.URL(url).host} to NO_PROXY."
        ) from None
    return options


def _is_excluded(host: str, port: int | None) -> bool:
    """Return True if NO_PROXY excludes the host: by name or a parent domain, with or without port, by network, or *."""
    listed = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    # typeshed doesn't know it
    bypassed = urllib.request.proxy_bypass_environment(  # type: ignore[attr-defined]
        f"{host}:{port}" if port else host, {"no": listed}
    )
    return bool(bypassed) or any(_is_in_network(host, entry.strip()) for entry in listed.split(","))


def _is_in_network(host: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network.strip("[]"), strict=False)
    except ValueError:
        return False
