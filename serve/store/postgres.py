"""Connections to PostgreSQL that give up a server which doesn't answer."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any, TypeVar

import psycopg
from sqlalchemy import Engine, event

ANSWER_S = 60.0
"""Longer than the server waits for a lock."""
T = TypeVar("T")


class LimitedConnection(psycopg.Connection[Any]):
    """Closes itself and raises OperationalError if the server hasn't answered within `ANSWER_S`.

    Timeouts of the server, such as statement_timeout, don't help if the server itself hangs.
    """

    def wait(self, gen: Generator[Any, Any, T], *args: Any, **kwargs: Any) -> T:
        return super().wait(self._limited(gen), *args, **kwargs)

    def _limited(self, gen: Generator[Any, Any, T]) -> Generator[Any, Any, T]:
        """Psycopg resumes the generator of a call whenever its socket is ready, and a few times per second."""
        deadline = time.monotonic() + ANSWER_S
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and time.monotonic() > deadline:
                    self.pgconn.finish()
                    raise psycopg.OperationalError(f"the server gave no answer within {ANSWER_S:g} s")
                wanted = gen.send(ready)
        except StopIteration as done:
            answer: T = done.value
            return answer


def limit_waiting(engine: Engine) -> None:
    """Make the connections of an engine `LimitedConnection`s."""

    @event.listens_for(engine, "do_connect")
    def connect(_dialect: Any, _record: Any, args: tuple[Any, ...], options: dict[str, Any]) -> LimitedConnection:
        return LimitedConnection.connect(*args, **options)
