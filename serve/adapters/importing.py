"""Imports an adapter as a model's next version: checked, made durable and published as the version of a job is."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tandem.cluster.artifacts import CHECKPOINTS, Artifacts
from tandem.cluster.config import TandemConfig
from tandem.cluster.engine.versions.version_checks import VersionReport
from tandem.cluster.errors import AdapterUnavailableError, VersionNotFiniteError
from tandem.rl.checkpoint_files import ADAPTER, MANIFEST
from tandem.rl.settings import LoraSettings
from tandem.rl.version_probe import VersionProbe
from tandem.serve.adapters.unpacking import AdapterFiles
from tandem.serve.errors import ConflictError, InvalidRequestError, NoAnswerError, Problem, UnavailableError
from tandem.serve.jobs.storage import storage_errors
from tandem.serve.store.store import Store
from tandem.serve.store.tables.training import ModelRow, VersionRow

logger = logging.getLogger(__name__)
MAX_TRIES = 3
"""Versions that other requests may add while an adapter is checked."""


class WriteImport(Protocol):
    def __call__(
        self, base_model: str, config_file: Path, weights_file: Path, lora: LoraSettings, about: Mapping[str, Any]
    ) -> str:
        """Make the adapter a durable checkpoint and return its digest. Raise AdapterError or StageError."""


class Trials(Protocol):
    """Learners and engines, which try a version before anyone can request it."""

    def probe(self, base_model: str, digest: str) -> VersionProbe:
        """Return the learners' logprobs of the probe under the version. Raise UnavailableError."""

    def load(self, base_model: str, digest: str) -> Sequence[VersionReport | BaseException | None]:
        """Have every engine load the version, and return the verdict or the error of each."""


@dataclass(frozen=True)
class OfferedAdapter:
    model: ModelRow
    files: AdapterFiles
    idempotency_key: str | None = None
    step: int | None = None
    """The step of the new version, not below the model's next one. None: the next one."""
    origin: Mapping[str, Any] = field(default_factory=dict)
    """Where it comes from, as users will see it."""


def lora_of_model(model: ModelRow, config: TandemConfig) -> LoraSettings:
    """Return the LoRA settings of a model: its own, or those of its base model."""
    if model.lora is not None:
        return LoraSettings.model_validate(model.lora)
    return config.base_model(model.base_model).lora


class AdapterImport:
    """Turns an offered adapter into a version that can be requested and trained on, without optimizer state.

    Versions stay in one line: the import is refused while a job that has begun is open, because the job's result
    follows the version before. Jobs that are queued start from the imported one.
    """

    def __init__(self, store: Store, artifacts: Artifacts, config: TandemConfig, write: WriteImport, trials: Trials):
        self._store, self._artifacts, self._config = store, artifacts, config
        self._write, self._trials = write, trials

    def accept(self, offered: OfferedAdapter, confirm: Callable[[], object] = lambda: None) -> VersionRow:
        """Return the imported version; for a repeated key, the version that it imported first.

        Without a key, content that the model's newest version was imported from makes no second version. `confirm` is
        called last, before the row is written; an error that it raises withdraws the offer.

        Raises AdapterError and InvalidRequestError for an adapter that can't be a version of this model, ConflictError
        while a job is at work or for a reused key, NotFoundError, StorageFullError, UnavailableError.
        """
        content = offered.files.sha256()
        for _ in range(MAX_TRIES):
            if first := self._store.lineage.find_import(offered.model.id, content, offered.idempotency_key):
                return first
            model = self._store.lineage.check_importable(offered.model.id, offered.model.entity)
            self._check_base_model(model)
            step = self._step(model, offered.step)
            with self._checkpoint(model, offered.files, step) as digest:
                self._try(model.base_model, digest)
                confirm()
                row = self._store.lineage.add_import(
                    model.id,
                    model.entity,
                    step,
                    digest,
                    dict(offered.origin),
                    content,
                    offered.idempotency_key,
                )
                if row is not None and row.digest == digest:
                    return row
            if row is not None:  # the same request arrived twice at once, and the other one was first
                return row
        raise ConflictError(
            f"Other versions of {offered.model.path} appeared while the adapter was checked. Send it again.",
            "versions_added",
        )

    def _check_base_model(self, model: ModelRow) -> None:
        if model.base_model not in {base.name for base in self._config.base_models}:
            message = f"its base model {model.base_model} isn't in the service's configuration any more"
            raise InvalidRequestError([Problem(("path", "model_id"), message)], "base_model_not_found")

    def _step(self, model: ModelRow, wanted: int | None) -> int:
        if wanted is not None and wanted < model.next_step:
            raise InvalidRequestError(
                [Problem(("query", "step"), f"must be at least {model.next_step}: steps are never used again")]
            )
        return wanted or model.next_step

    @contextmanager
    def _checkpoint(self, model: ModelRow, files: AdapterFiles, step: int) -> Iterator[str]:
        """Write the checkpoint for a block that adds its row. It is deleted unless the row exists afterwards."""
        about = {"base_model": model.base_model, "model_id": model.id, "step": step}
        lora = lora_of_model(model, self._config)
        with storage_errors():
            digest = self._write(model.base_model, files.config, files.weights, lora, about)
        try:
            yield digest
        except NoAnswerError:  # the row may exist
            raise
        except BaseException:
            self._delete(digest)
            raise
        if not self._store.versions.has_digest(digest):
            self._delete(digest)

    def _delete(self, digest: str) -> None:
        try:
            self._artifacts.delete_checkpoint(digest)
        except OSError:
            logger.warning("Can't delete the checkpoint %s of a refused import", digest, exc_info=True)

    def _try(self, base_model: str, digest: str) -> None:
        """Raise unless learners and engines compute finite logprobs under the version, and the same.

        An engine that doesn't answer loads the version with its first request, as it does after a job.
        """
        probe = self._trials.probe(base_model, digest)
        if not probe.is_finite:
            raise _not_finite()
        manifest = self._artifacts.read_blob(f"{CHECKPOINTS}/{digest}/{MANIFEST}")
        with storage_errors():
            self._artifacts.describe_checkpoint(digest, probe.described(manifest))
        for answer in self._trials.load(base_model, digest):
            if isinstance(answer, VersionNotFiniteError):
                raise _not_finite()
            if isinstance(answer, AdapterUnavailableError):
                logger.error("An engine of %s can't load an imported adapter: %s", base_model, answer)
                raise UnavailableError("An engine can't load this adapter. Nothing was imported.", "engine_unavailable")
            if isinstance(answer, dict) and not answer["is_right"]:
                raise UnavailableError(
                    f"An engine doesn't apply this adapter as the learners do: its logprobs differ by up to "
                    f"{answer['max']:.3g} nats. Nothing was imported.",
                    "engine_disagrees",
                )
            if isinstance(answer, BaseException):
                logger.warning("An engine of %s hasn't loaded an imported adapter yet: %r", base_model, answer)


def _not_finite() -> InvalidRequestError:
    message = "its logprobs on a short text aren't finite: the weights are too large for this base model"
    return InvalidRequestError([Problem(("body", ADAPTER), message)], "version_not_finite")
