"""A client that retries as the documentation advises, with the same Idempotency-Key."""

from __future__ import annotations

import time
from typing import Any

import httpx

RETRIED_STATUSES = {408, 429, 500, 502, 503, 504}
PAUSE_S = 0.3


class RefusedError(AssertionError):
    """An error that no retry would change."""


class PatientClient:
    """Calls that outlast a fault of the service. Safe for use by several threads."""

    def __init__(self, http: httpx.Client, patience_s: float):
        """`patience_s`: how long a call is retried before its last failure is raised."""
        self._http, self._patience_s = http, patience_s

    def call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """Return the JSON of the answer. Raises RefusedError for a 4xx, and the last failure when patience ends."""
        deadline = time.monotonic() + self._patience_s
        while True:
            pause_s = PAUSE_S
            try:
                response = self._http.request(method, path, **options)
                if response.is_success:
                    return response.json()
                if not worth_retrying(response):
                    raise RefusedError(f"{method} {path} was answered {response.status_code}: {response.text}")
                failure: Exception = httpx.HTTPStatusError(
                    f"{method} {path} was answered {response.status_code}: {response.text[:500]}",
                    request=response.request,
                    response=response,
                )
                pause_s = float(response.headers.get("retry-after", PAUSE_S))
            except httpx.TransportError as error:
                failure = error
            if time.monotonic() + pause_s > deadline:
                raise failure
            time.sleep(pause_s)

    def all_pages(self, path: str, **params: Any) -> list[dict[str, Any]]:
        """Return all items of a list, in order."""
        items: list[dict[str, Any]] = []
        while True:
            after = {"after": items[-1]["id"]} if items else {}
            page = self.call("GET", path, params={"limit": 100, **params, **after})
            items += page["data"]
            if not page["has_more"]:
                return items


def worth_retrying(response: httpx.Response) -> bool:
    """Return True if a retry of the request may succeed.

    A 404 is final. All that a campaign asks for exists, so it is a finding, also in the first seconds of a new proxy.
    """
    return response.status_code in RETRIED_STATUSES
