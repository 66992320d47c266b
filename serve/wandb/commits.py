"""The end of an upload: the rows of training data become a dataset, and an adapter becomes a version of its model."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tandem.cluster.artifacts import ADAPTER_FILES
from tandem.rl.checkpoint_files import ADAPTER, ADAPTER_CONFIG
from tandem.serve.adapters.importing import AdapterImport, OfferedAdapter
from tandem.serve.adapters.unpacking import AdapterFiles
from tandem.serve.api.services import Services
from tandem.serve.ingest.spool import BodyFile
from tandem.serve.jobs.blobs import delete_blobs
from tandem.serve.jobs.datasets import store_dataset
from tandem.serve.jobs.storage import storage_errors
from tandem.serve.store.tables.training import ModelRow
from tandem.serve.store.tables.wandb import WandbArtifactRow, WandbFileRow
from tandem.serve.store.uploads.wandb import DATA_FILES
from tandem.serve.wandb.library import Library
from tandem.serve.wandb.sources import CHUNK_BYTES
from tandem.serve.wandb.uploads import check_complete

_STEP = re.compile(r"step([1-9]\d{0,8})", re.ASCII)


class Commits:
    def __init__(self, services: Services, library: Library):
        self._services, self._library = services, library
        self._store, self._artifacts = services.store, services.artifacts

    def commit(self, artifact_id: str) -> None:
        """Commit an uploaded artifact. Doing it again is no error.

        Raises NotFoundError, ConflictError for an incomplete one, and the errors of an import.
        """
        entity = self._library.entity
        row = self._store.wandb.get(artifact_id, entity)
        if row.committed_at is not None:
            return
        files = self._store.wandb.files(artifact_id)
        check_complete(row, files)
        if row.type == "lora":
            self._import(row, files)
        else:
            self._store_rows(row, files)

    def _store_rows(self, row: WandbArtifactRow, files: Sequence[WandbFileRow]) -> None:
        """Store the rows as a dataset, which jobs find by the name of the artifact."""
        [rows] = [file for file in files if file.name in DATA_FILES]
        assert rows.blob_key
        with storage_errors():
            body = BodyFile(self._artifacts.spool_dir, ".jsonl.zst")
        try:
            with storage_errors(), self._artifacts.open_blob(rows.blob_key) as source:
                while piece := source.read(CHUNK_BYTES):
                    body.write(piece)
                body.finish()
            store_dataset(self._store, self._artifacts, body, row.entity, self._services.preparation.count_rows)
        finally:
            body.discard()
        self._store.wandb.commit_dataset(row.id, row.entity)
        delete_blobs(self._artifacts, [rows.blob_key])

    def _import(self, row: WandbArtifactRow, files: Sequence[WandbFileRow]) -> None:
        """Make the adapter a version of the model of its name: at the step of its alias, or at the next one."""
        services, model = self._services, self._library.model(row.project, row.collection)
        importing = AdapterImport(
            self._store, self._artifacts, services.config, services.preparation.import_adapter, services.trials
        )
        with self._on_disk(files) as adapter:
            offered = OfferedAdapter(model, adapter, f"wandb-{row.id}", _step(model, row.aliases))
            version = importing.accept(offered)
        self._store.wandb.commit_adapter(row.id, row.entity, model.id, version.step)
        delete_blobs(self._artifacts, [file.blob_key for file in files if file.blob_key])

    @contextmanager
    def _on_disk(self, files: Sequence[WandbFileRow]) -> Iterator[AdapterFiles]:
        """Copy an adapter's files to the disk of this node, for the time of the block."""
        place = Path(tempfile.mkdtemp(prefix="adapter-", dir=self._artifacts.spool_dir))
        try:
            with storage_errors():
                for file in files:
                    assert file.name in ADAPTER_FILES and file.blob_key
                    with self._artifacts.open_blob(file.blob_key) as source, open(place / file.name, "wb") as target:
                        shutil.copyfileobj(source, target)
            yield AdapterFiles(place / ADAPTER_CONFIG, place / ADAPTER)
        finally:
            shutil.rmtree(place, ignore_errors=True)


def _step(model: ModelRow, aliases: Sequence[str]) -> int | None:
    """Return the step that an alias like step5 asks for, if the model hasn't had it yet; None: the next one."""
    steps = [int(found[1]) for alias in aliases if (found := _STEP.fullmatch(alias))]
    return steps[0] if len(steps) == 1 and steps[0] >= model.next_step else None
