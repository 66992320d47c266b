"""Check the service's URL and the API key before a request is made with them. A key is never part of a message."""

from __future__ import annotations

import ipaddress

import httpx

from tandem.client.errors import SettingsError

API_PATHS = ("/v1/preview", "/v1")
"""Endings of URLs that people copy from an OpenAI client's settings."""


def service_url(given: str) -> str:
    """Return the service's URL without the path of its API and without a slash at its end. Raise SettingsError."""
    url = given.strip()
    scheme, separator, rest = url.partition("://")
    if scheme.lower() not in ("http", "https") or not separator:
        shown = "" if "@" in url else f", but is {url!r}"
        raise SettingsError(f"The URL of the service must begin with http:// or https://{shown}.")
    if "@" in rest.partition("/")[0]:
        raise SettingsError(
            "The URL of the service has a user or password before its host. Remove them; the API key belongs in "
            "TANDEM_API_KEY."
        )
    try:
        parsed = httpx.URL(f"{scheme.lower()}://{rest}")
        is_whole = bool(parsed.host) and 0 < (parsed.port or 1) < 65536
    except (httpx.InvalidURL, ValueError) as error:
        raise SettingsError(f"{url!r} isn't the URL of a service: {error}.") from None
    if not is_whole or any(letter.isspace() for letter in url) or parsed.query or parsed.fragment:
        raise SettingsError(
            f"{url!r} isn't the URL of a service. Write scheme, host and port alone, like http://127.0.0.1:8000."
        )
    clean = str(parsed).rstrip("/")
    for path in API_PATHS:
        clean = clean.removesuffix(path).rstrip("/")
    return clean


def api_key(given: str) -> str:
    """Return the key without the white space around it. Raise SettingsError if it can't be a key."""
    key = given.strip()
    if not key:
        raise SettingsError(
            "There is no API key. Set TANDEM_API_KEY to one of the service's keys, or pass it; "
            "`tandem keys create` makes one."
        )
    for place, letter in enumerate(key, start=1):
        if not (letter.isascii() and letter.isprintable()) or letter == " ":
            raise SettingsError(
                f"The API key has U+{ord(letter):04X} as character {place} of {len(key)}, which no key has. Copy the "
                "key into TANDEM_API_KEY again."
            )
    return key


def is_loopback(host: str) -> bool:
    """Return True for a host that is this machine, whatever its name servers say."""
    name = host.strip("[]").rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback
