"""The service's training API, as a run uses it."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import httpx
from openai import AsyncOpenAI

from tandem.runs.errors import RequestRefusedError
from tandem.runs.patience import Patience, PatientTransport

WAIT_S = 30.0
REQUEST_S = 120.0  # of silence; longer than WAIT_S


@dataclass(frozen=True)
class RegisteredModel:
    id: str
    name: str
    """As completions are asked for: entity/project/name is the newest version, with `:stepK` it is version K."""
    step: int
    """The newest version when it was registered."""


class TrainingService:
    """async with TrainingService(url, key, patience) as service: ...

    Every call is repeated while the service is in trouble, as `patience` has it, and raises ServiceAwayError after
    that; RequestRefusedError when the service says no.
    """

    def __init__(self, url: str, key: str, patience: Patience, completion_s: float = 600.0):
        """
        Args:
            url: of the service, without `/v1`.
            completion_s: silence after which a completion is asked for again.
        """
        self.url, self.patience = url.rstrip("/"), patience
        self._key, self._completion_s = key, completion_s
        self._exits = AsyncExitStack()

    async def __aenter__(self) -> TrainingService:
        headers = {"Authorization": f"Bearer {self._key}"}
        self._http = await self._exits.enter_async_context(self._client(REQUEST_S, headers=headers))
        completions = await self._exits.enter_async_context(self._client(self._completion_s))
        self.openai = AsyncOpenAI(
            base_url=f"{self.url}/v1",
            api_key=self._key,
            http_client=completions,
            timeout=completions.timeout,
            max_retries=0,  # the transport repeats what fails
        )
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._exits.aclose()

    def _client(self, timeout_s: float, **options: Any) -> httpx.AsyncClient:
        # Without limits: how many rollouts run is the run's own business.
        inner = httpx.AsyncHTTPTransport(limits=httpx.Limits(max_connections=None, max_keepalive_connections=100))
        timeout = httpx.Timeout(timeout_s, connect=30.0, pool=None)
        transport = PatientTransport(inner, self.patience)
        return httpx.AsyncClient(base_url=f"{self.url}/v1", transport=transport, timeout=timeout, **options)

    async def register(self, entity: str | None, project: str, name: str, base_model: str) -> RegisteredModel:
        body = {"entity": entity, "project": project, "name": name, "base_model": base_model, "return_existing": True}
        model = await self._call("POST", "/preview/models", json=body)
        return RegisteredModel(model["id"], f"{model['entity']}/{model['project']}/{model['name']}", model["step"])

    async def newest_step(self, model_id: str) -> int:
        return (await self._call("GET", f"/preview/models/{model_id}"))["step"]

    async def versions_after(self, model_id: str, step: int, wait_s: float = WAIT_S) -> list[int]:
        """Versions newer than `step`, in order: at once if there are any, else within `wait_s`."""
        params = {"after": step, "wait": wait_s, "limit": 100}
        page = await self._call("GET", f"/preview/models/{model_id}/versions", params=params)
        return [version["step"] for version in page["data"]]

    async def post_job(self, body_zstd: bytes, idempotency_key: str) -> str:
        """The id of the job, whichever attempt to post it has made it."""
        headers = {
            "Idempotency-Key": idempotency_key,
            "Content-Type": "application/json",
            "Content-Encoding": "zstd",
        }
        return (await self._call("POST", "/preview/training-jobs", content=body_zstd, headers=headers))["id"]

    async def job(self, job_id: str) -> dict[str, Any]:
        return await self._call("GET", f"/preview/training-jobs/{job_id}")

    async def events_after(self, job_id: str, event_id: str | None) -> list[dict[str, Any]]:
        """Up to 1000 of the job's events after that one, in order."""
        params = {"limit": 1000} | ({"after": event_id} if event_id else {})
        return (await self._call("GET", f"/preview/training-jobs/{job_id}/events", params=params))["data"]

    async def _call(self, method: str, path: str, **options: Any) -> Any:
        response = await self._http.request(method, path, **options)
        if response.is_success:
            return response.json()
        raise RequestRefusedError(
            f"{self.url} refused {method} /v1{path} ({response.status_code}): {_message(response)}"
        )


def _message(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return response.text[:500]
