"""Errors of the service, in its own terms. `serve.api.error_responses` turns them into HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace


class ServeError(Exception):
    """Root of the service's errors. Its message says what was wrong and what to do.

    Attributes:
        message: the sentence for the user.
        code: the kind of error, as a word that programs can test.
        param: the part of the request that is wrong, like "model"; None for the request as a whole.
    """

    def __init__(self, message: str, code: str, param: str | None = None):
        super().__init__(message, code, param)
        self.message, self.code, self.param = message, code, param

    def __str__(self) -> str:
        return self.message


class AuthenticationError(ServeError):
    """The request has no valid key."""

    def __init__(self, message: str):
        super().__init__(message, "invalid_api_key")

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return type(self), (self.message,)


class ForbiddenError(ServeError):
    """The key is valid but doesn't permit this request."""


class NotFoundError(ServeError, LookupError):
    """The object doesn't exist, or belongs to another entity."""


class GoneError(NotFoundError):
    """The object was deleted, and its request was right once."""


class ConflictError(ServeError, ValueError):
    """The request contradicts something that exists already."""


class QueueFullError(ServeError, RuntimeError):
    """The limit of open jobs is reached."""

    def __init__(self, message: str):
        super().__init__(message, "queue_full")

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return type(self), (self.message,)


class TooManyStreamsError(ServeError, RuntimeError):
    """The limit of streams of changes is reached."""

    def __init__(self, message: str):
        super().__init__(message, "too_many_streams")

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return type(self), (self.message,)


class TooLargeError(ServeError, ValueError):
    """The body exceeds a limit on its size."""


class UnsupportedCodingError(ServeError, ValueError):
    """The body has a content encoding that the service can't decode."""

    def __init__(self, message: str):
        super().__init__(message, "unsupported_content_encoding", "Content-Encoding")

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return type(self), (self.message,)


class StalledError(ServeError, RuntimeError):
    """The client stopped sending in the middle of its request."""


class StorageFullError(ServeError, RuntimeError):
    """There is too little disk space to store the request."""


class UnavailableError(ServeError, RuntimeError):
    """The service can't do this now; a retry may succeed."""


class NoAnswerError(UnavailableError):
    """The store didn't answer. A write may nevertheless have been committed."""

    def __init__(self) -> None:
        super().__init__("The store doesn't answer. Try again in a moment.", "store_unavailable")

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(self), ()


class DeadlineError(ServeError, RuntimeError):
    """The request took longer than its deadline."""


@dataclass(frozen=True)
class Problem:
    """A place in a request that is wrong (like `("body", "model_id")`), a sentence, and the kind of problem."""

    loc: tuple[str | int, ...]
    msg: str
    type: str = "value_error"

    @property
    def path(self) -> str:
        return ".".join(str(part) for part in self.loc)


class InvalidRequestError(ServeError, ValueError):
    """A well-formed request whose contents can't be accepted, with every problem that was found."""

    def __init__(self, problems: Sequence[Problem], code: str = "invalid_request"):
        first = problems[0]
        more = f" (and {len(problems) - 1} more; see detail)" if len(problems) > 1 else ""
        super().__init__(f"{first.path}: {first.msg}{more}", code, first.path)
        self.problems = tuple(problems)

    def __reduce__(self) -> tuple[type, tuple[tuple[Problem, ...], str]]:
        return type(self), (self.problems, self.code)


class BadRequestError(InvalidRequestError):
    """An InvalidRequestError that is answered as OpenAI's own API does: 400, and `param` is a field of the body."""

    def __init__(self, problems: Sequence[Problem], code: str = "invalid_request"):
        places = (problem.loc[1:] if problem.loc[0] == "body" else problem.loc for problem in problems)
        super().__init__([replace(p, loc=place or p.loc) for p, place in zip(problems, places, strict=True)], code)
