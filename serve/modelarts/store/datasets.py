"""Fingerprints of dataset versions: a version must not change after its first use."""

from __future__ import annotations

from sqlalchemy.exc import IntegrityError

from tandem.serve.modelarts.store.tables import DatasetVersionRow
from tandem.serve.store.database import Database


class DatasetVersions:
    """The fingerprint of each dataset version at its first use."""

    def __init__(self, database: Database):
        self._database = database

    def check(self, project: str, dataset_id: str, version: str, fingerprint: str) -> bool:
        """Return True if the version is unchanged since a job first used it. The first use records the fingerprint."""
        key = {"project": project, "dataset_id": dataset_id, "version": version}
        try:
            with self._database.write() as session:
                row = session.get(DatasetVersionRow, key)
                if row is None:
                    session.add(DatasetVersionRow(**key, fingerprint=fingerprint))
                return row is None or row.fingerprint == fingerprint
        except IntegrityError:  # another job recorded its first use in the meantime
            with self._database.read() as session:
                return session.get_one(DatasetVersionRow, key).fingerprint == fingerprint
