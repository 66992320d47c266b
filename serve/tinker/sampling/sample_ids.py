"""Ids by which clients ask for samples. They say where the sample is, so that no process has to remember it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

from tandem.serve.tinker.store.paths import no_request

PREFIX = "sample/"
_NOWHERE = "-"
_ID = re.compile(rf"{PREFIX}([^/]+)/([^/]+)/([^/]+)/(0|[1-9][0-9]{{0,18}})")


@dataclass(frozen=True)
class SampleId:
    base_model: str
    replica: str | None
    """The engine replica that computes it; None if there was none when the client asked."""
    session: str
    """The sampling session."""
    seq: int

    def __str__(self) -> str:
        place = _NOWHERE if self.replica is None else quote(self.replica, safe="")
        return f"{PREFIX}{quote(self.base_model, safe='')}/{place}/{quote(self.session, safe='')}/{self.seq}"

    @classmethod
    def parse(cls, text: str) -> SampleId:
        """Raises NotFoundError."""
        found = _ID.fullmatch(text)
        if found is None:
            raise no_request(text)
        replica = None if found[2] == _NOWHERE else unquote(found[2])
        return cls(unquote(found[1]), replica, unquote(found[3]), int(found[4]))

    def sequence_ids(self, num: int) -> list[str]:
        """Return a name for each sequence of the sample."""
        return [f"{self.session}/{self.seq}/{index}" for index in range(num)]
