"""The client's errors. All can be pickled, and `except TandemError` catches them all."""

from __future__ import annotations

from typing import Any

import httpx

from tandem.client.records import Fault, Job


class TandemError(Exception):
    """Root of the client's errors.

    Attributes:
        message: a sentence; the service's own if the service sent one.
    """

    def __init__(self, message: str):
        super().__init__(message)
        self.message = message


class SettingsError(TandemError, ValueError):
    """The API key is missing or the service's URL isn't one."""


class NoAnswerError(TandemError, ConnectionError):
    """The service couldn't be reached, or the connection was lost, until retries ended."""


class UnexpectedAnswerError(TandemError, ValueError):
    """The answer isn't one of Tandem's API: the URL may name another service."""


class WaitTimeoutError(TandemError, TimeoutError):
    """The job or version didn't arrive within `timeout_s`."""


class TransferError(TandemError, OSError):
    """A file arrived damaged."""


class StatusError(TandemError):
    """The service answered with an error.

    Attributes:
        message: the service's sentence.
        status: the HTTP status.
        code: the kind of error as a word, like "queue_full".
        param: the part of the request that it is about, like "body.base_model".
        faults: every fault of the request, if the service lists them.
        retry_after_s: the service's Retry-After.
        request: method and URL.
    """

    def __init__(
        self,
        message: str,
        status: int,
        code: str | None = None,
        param: str | None = None,
        faults: tuple[Fault, ...] = (),
        retry_after_s: float | None = None,
        request: str = "",
    ):
        super().__init__(message)
        self.status, self.code, self.param, self.faults = status, code, param, faults
        self.retry_after_s, self.request = retry_after_s, request

    def __str__(self) -> str:
        return f"{self.request} was rejected ({self.status}): {self.message}"

    def __reduce__(self) -> tuple[Any, ...]:
        arguments = (self.message, self.status, self.code, self.param, self.faults, self.retry_after_s, self.request)
        return type(self), arguments


class AuthenticationError(StatusError, PermissionError):
    """401: the key isn't valid."""


class ForbiddenError(StatusError, PermissionError):
    """403: the key's role or entity doesn't allow this."""


class NotFoundError(StatusError, LookupError):
    """404: it doesn't exist, or belongs to another entity."""


class ConflictError(StatusError, ValueError):
    """409: the request contradicts what exists, like a name that is taken."""


class InvalidRequestError(StatusError, ValueError):
    """Any other 4xx: the request can't be accepted; `param` and `faults` say where."""


class QueueFullError(StatusError, RuntimeError):
    """429: too many jobs are open."""


class ServiceError(StatusError, RuntimeError):
    """5xx: the service failed or is temporarily unavailable."""


class JobFailedError(TandemError, RuntimeError):
    """A training job failed; the message has the service's sentence.

    Attributes:
        job: the job as it ended.
    """

    def __init__(self, job: Job):
        super().__init__(f"Training job {job.id} {job.state}: {job.error}")
        self.job = job

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.job,)


class JobCancelledError(JobFailedError):
    """A training job was cancelled."""


_OF_STATUS: dict[int, type[StatusError]] = {
    401: AuthenticationError,
    403: ForbiddenError,
    404: NotFoundError,
    409: ConflictError,
    429: QueueFullError,
}


def status_error(response: httpx.Response, remark: str = "") -> StatusError:
    """Return the exception for an answer that isn't a success. `remark` is for answers that aren't the service's."""
    default = ServiceError if response.status_code >= 500 else InvalidRequestError
    kind = _OF_STATUS.get(response.status_code, default)
    body = _json_object(response)
    error = body.get("error")
    described: dict[str, Any] = error if isinstance(error, dict) else {}
    faults = tuple(
        Fault(tuple(fault["loc"]), fault["msg"], fault["type"])
        for fault in body.get("detail") or ()
        if isinstance(fault, dict) and {"loc", "msg", "type"} <= fault.keys()
    )
    request = f"{response.request.method} {response.request.url}"
    return kind(
        sentence(response) + ("" if described else remark),
        response.status_code,
        described.get("code"),
        described.get("param"),
        faults,
        retry_after_s(response),
        request,
    )


def sentence(response: httpx.Response) -> str:
    """Return the sentence of an error response."""
    error = _json_object(response).get("error")
    if isinstance(error, dict) and "message" in error:
        return str(error["message"])
    return str(error) if error else response.text[:500]


def retry_after_s(response: httpx.Response) -> float | None:
    try:
        return max(0.0, float(response.headers["retry-after"]))
    except (KeyError, ValueError):  # the service sends seconds, never a date
        return None


def _json_object(response: httpx.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
