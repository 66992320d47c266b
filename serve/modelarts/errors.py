"""The error codes of this API, and the error that carries one."""

from __future__ import annotations

from tandem.serve.errors import ServeError

INTERNAL = "ModelArts.0010"
NOT_FOUND = "ModelArts.0102"
DUPLICATE_NAME = "ModelArts.0103"
INVALID_VALUE = "ModelArts.0104"
FORBIDDEN = "ModelArts.0105"
TOO_MANY_RESOURCES = "ModelArts.0106"
INVALID_REQUEST = "ModelArts.0107"
NOT_AUTHORIZED = "ModelArts.0108"
TOO_MANY_REQUESTS = "ModelArts.0114"
TOKEN_MISSING = "ModelArts.0201"
TOKEN_INVALID = "ModelArts.0203"
WRONG_PROJECT = "ModelArts.0210"
PATH_INVALID = "ModelArts.0404"
PATH_DENIED = "ModelArts.0415"


class RejectedError(ServeError, ValueError):
    """This API rejects the request; `code` is one of the codes above."""

    def __init__(self, code: str, message: str, param: str | None = None):
        super().__init__(message, code, param)

    def within(self, place: str) -> RejectedError:
        """Return the error with its parameter below `place`, also where its message begins with the parameter."""
        if self.param is None:
            return self
        message = f"{place}.{self.message}" if self.message.startswith(self.param) else self.message
        return RejectedError(self.code, message, f"{place}.{self.param}")

    def __reduce__(self) -> tuple[type, tuple[str, str, str | None]]:
        return type(self), (self.code, self.message, self.param)
