"""What the service refuses, and why. `error_responses` turns these into HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class ServeError(Exception):
    """Root of the service's errors: a sentence for the user that says what was wrong and what to do.

    Attributes:
        message: the sentence.
        code: what went wrong, as a word that programs can test.
        param: the part of the request that it is about, like "model"; None when it is the request as a whole.
    """

    def __init__(self, message: str, code: str, param: str | None = None):
        super().__init__(message, code, param)
        self.message, self.code, self.param = message, code, param

    def __str__(self) -> str:
        return self.message


class AuthenticationError(ServeError):
    """The request names no valid key."""

    def __init__(self, message: str):
        super().__init__(message, "invalid_api_key")

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return type(self), (self.message,)


class ForbiddenError(ServeError):
    """The key is valid but not for this."""


class NotFoundError(ServeError, LookupError):
    """There is no such thing, or the key's entity doesn't own it."""


class ConflictError(ServeError, ValueError):
    """The request contradicts what exists already."""


class QueueFullError(ServeError, RuntimeError):
    """As many jobs as may be are open already."""

    def __init__(self, message: str):
        super().__init__(message, "queue_full")

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return type(self), (self.message,)


class TooLargeError(ServeError, ValueError):
    """The request's body is larger than the service takes."""


class UnsupportedCodingError(ServeError, ValueError):
    """The request's body is packed in a way that the service can't unpack."""

    def __init__(self, message: str):
        super().__init__(message, "unsupported_content_encoding", "Content-Encoding")

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return type(self), (self.message,)


class StalledError(ServeError, RuntimeError):
    """The client doesn't go on sending its request."""


class StorageFullError(ServeError, RuntimeError):
    """There is no room to keep what the request brings."""


class UnavailableError(ServeError, RuntimeError):
    """The service can't do this now, but will be able to in a moment."""


class NoAnswerError(UnavailableError):
    """The store doesn't answer. What was asked of it may have been done nevertheless."""

    def __init__(self) -> None:
        super().__init__("The store doesn't answer. Try again in a moment.", "store_unavailable")

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()


class DeadlineError(ServeError, RuntimeError):
    """The request took longer than the service allows."""


@dataclass(frozen=True)
class Fault:
    """One fault of a request: where it is (like `("body", "model_id")`), a sentence, and the kind of fault."""

    loc: tuple[str | int, ...]
    msg: str
    type: str = "value_error"

    @property
    def path(self) -> str:
        return ".".join(str(part) for part in self.loc)


class InvalidRequestError(ServeError, ValueError):
    """A well-formed request with contents that can't be accepted, and every place where that is so."""

    def __init__(self, faults: Sequence[Fault], code: str = "invalid_request"):
        first = faults[0]
        more = f" (and {len(faults) - 1} more; see detail)" if len(faults) > 1 else ""
        super().__init__(f"{first.path}: {first.msg}{more}", code, first.path)
        self.faults = tuple(faults)

    def __reduce__(self) -> tuple[type, tuple[tuple[Fault, ...], str]]:
        return type(self), (self.faults, self.code)
