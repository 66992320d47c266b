"""How far runs have come, for the many requests that wait for results."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import bindparam, select

from tandem.serve.store.database import Database
from tandem.serve.store.tables.tinker import RunRow

_APPLIED = select(RunRow.id, RunRow.applied_seq, RunRow.unloaded_at).where(
    RunRow.id.in_(bindparam("run_ids", expanding=True))
)
NEVER_MORE = 2**63
"""The progress of an unloaded run, whose calls have all ended."""


def applied_seqs(database: Database, run_ids: Collection[str]) -> dict[str, int]:
    """Return the last call of each run that has ended in its turn. It is a short read."""
    with database.quick_read() as connection:
        rows = connection.execute(_APPLIED, {"run_ids": list(run_ids)})
        return {id: seq if unloaded_at is None else NEVER_MORE for id, seq, unloaded_at in rows}
