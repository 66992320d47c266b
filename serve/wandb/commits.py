"""The end of an upload: training data becomes a dataset, an adapter becomes a version of its model."""

from __future__ import annotations

from tandem.cluster.artifacts import Artifacts
from tandem.serve.store.store import Store
from tandem.serve.wandb.uploads import check_complete


class Commits:
    def __init__(self, store: Store, artifacts: Artifacts):
        self._store, self._artifacts = store, artifacts

    def commit(self, artifact_id: str, entity: str) -> None:
        """Commit an uploaded artifact. Doing it again is no error.

        Raises NotFoundError, ConflictError for an incomplete one, and the errors of an import.
        """
        row = self._store.wandb.get(artifact_id, entity)
        if row.committed_at is not None:
            return
        check_complete(row, self._store.wandb.files(artifact_id))
        self._store.wandb.commit_dataset(artifact_id, entity)
