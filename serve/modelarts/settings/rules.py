"""Rules across settings: one code source, one data source, and only paths and resources that exist for the project."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tandem.serve.modelarts.errors import (
    FORBIDDEN,
    INVALID_REQUEST,
    INVALID_VALUE,
    PATH_DENIED,
    PATH_INVALID,
    RejectedError,
)
from tandem.serve.modelarts.settings.algorithm_parameters import parse_parameters
from tandem.serve.modelarts.settings.algorithms import ALGORITHMS
from tandem.serve.modelarts.settings.engines import ENGINES
from tandem.serve.modelarts.settings.project_storage import PathDeniedError, PathInvalidError, ProjectStorage
from tandem.serve.modelarts.settings.resource_specs import LEARNERS_SPEC_ID, ResourceSpec, find_spec
from tandem.serve.modelarts.settings.run_settings import DataSource, RunSettings


@dataclass(frozen=True)
class Rules:
    """Checks settings against the project's storage, the cluster's resources and the service's base models."""

    specs: Sequence[ResourceSpec]
    storage: ProjectStorage
    base_models: Collection[str]

    def check(self, settings: RunSettings) -> None:
        """Raise RejectedError, which names the field, for settings that break a rule."""
        if settings.user_image_url or settings.user_command:
            raise RejectedError(
                FORBIDDEN,
                "user_image_url: this service runs jobs as processes of a Ray cluster and can't start containers. "
                "Send the code as app_url and boot_file_url.",
                "user_image_url",
            )
        if settings.model_id is None:
            _check_boot_file(settings)
        else:
            self._check_algorithm(settings, settings.model_id)
        _check_data(settings)
        self._check_paths(settings)
        self._check_resources(settings)

    def _check_algorithm(self, settings: RunSettings, model_id: int) -> None:
        for name in ("app_url", "boot_file_url", "engine_id"):
            if _is_given(settings, name):
                raise _invalid(name, "leave it out: model_id selects a built-in algorithm, which has its own code")
        if model_id not in ALGORITHMS:
            known = ", ".join(f"{id} ({algorithm.name})" for id, algorithm in ALGORITHMS.items())
            raise _wrong("model_id", f"there is no built-in algorithm {model_id}; choose one of: {known}")
        base_model = parse_parameters(ALGORITHMS[model_id], settings.parameter or ()).options.base_model
        if base_model is not None and base_model not in self.base_models:
            known = ", ".join(self.base_models)
            raise _wrong("base_model", f"this service has no base model {base_model!r}; choose one of: {known}")

    def _check_paths(self, settings: RunSettings) -> None:
        """Check that all paths lie below the project's roots. Their existence is checked when the job runs."""
        urls = [(name, getattr(settings, name)) for name in ("app_url", "train_url", "log_url")]
        for field, url in urls + settings.data_urls():
            try:
                if url:
                    self.storage.resolve(url)
            except PathDeniedError as error:
                raise RejectedError(PATH_DENIED, f"{field}: {error}", field) from error
            except PathInvalidError as error:
                raise RejectedError(PATH_INVALID, f"{field}: {error}", field) from error
        for field, dataset_id, version in settings.datasets():
            try:
                self.storage.dataset(dataset_id, version)
            except PathInvalidError as error:
                raise RejectedError(PATH_INVALID, f"{field}: {error}", field) from error

    def _check_resources(self, settings: RunSettings) -> None:
        if settings.worker_server_num is None:
            raise _invalid("worker_server_num", "is missing; send the number of workers")
        if settings.spec_id is None:
            raise _invalid("spec_id", "is missing; GET job/resource-specs lists the specifications")
        spec, needs_learners = find_spec(self.specs, settings.spec_id), settings.model_id is not None
        if spec is None or (spec.spec_id == LEARNERS_SPEC_ID) != needs_learners:
            fitting = [spec for spec in self.specs if (spec.spec_id == LEARNERS_SPEC_ID) == needs_learners]
            known = ", ".join(f"{spec.spec_id} ({spec.spec_code})" for spec in fitting)
            reason = "doesn't fit a job of this kind" if spec else "doesn't exist"
            raise _wrong("spec_id", f"resource specification {settings.spec_id} {reason}; choose one of: {known}")
        if settings.worker_server_num > spec.max_num:
            raise _wrong("worker_server_num", f"the cluster holds at most {spec.max_num} workers of {spec.spec_code}")


def _check_boot_file(settings: RunSettings) -> None:
    if not settings.app_url and not settings.boot_file_url:
        raise _invalid("app_url", "a job needs code: app_url and boot_file_url, or model_id for a built-in algorithm")
    _check_pair(settings, "app_url", "boot_file_url")
    if settings.boot_file() is None:
        raise _wrong("boot_file_url", "must be a file below app_url, like /usr/app/boot.py below /usr/app/")
    if settings.engine_id is not None and settings.engine_id not in ENGINES:
        known = ", ".join(f"{id} ({engine.name})" for id, engine in ENGINES.items())
        raise _wrong("engine_id", f"there is no engine {settings.engine_id}; choose one of: {known}")


def _check_data(settings: RunSettings) -> None:
    has_dataset = _is_given(settings, "dataset_id") or _is_given(settings, "dataset_version_id")
    sources = {
        "data_url": _is_given(settings, "data_url"),
        "dataset_id": has_dataset,
        "data_source": settings.data_source is not None,
    }
    given = [name for name, is_given in sources.items() if is_given]
    if not given:
        raise _invalid("data_url", "a job needs data: data_url, dataset_id with dataset_version_id, or data_source")
    if len(given) > 1:
        raise _invalid(given[1], f"can't be sent together with {given[0]}; choose one")
    if has_dataset:
        _check_pair(settings, "dataset_id", "dataset_version_id")
    if settings.data_source is not None:
        _check_data_sources(settings.data_source)


def _check_data_sources(sources: Sequence[DataSource]) -> None:
    if not sources:
        raise _invalid("data_source", "is empty; name at least one dataset or path")
    if len({source.type for source in sources}) > 1:
        raise _invalid("data_source", "sources of type dataset and of type obs can't be mixed")
    for index, source in enumerate(sources):
        needed = ("dataset_id", "dataset_version") if source.type == "dataset" else ("data_url",)
        for name in ("dataset_id", "dataset_version", "data_url"):
            if name in needed and not getattr(source, name):
                raise _invalid(f"data_source[{index}].{name}", f"is missing; type {source.type!r} needs it")
            if name not in needed and getattr(source, name):
                raise _invalid(f"data_source[{index}].{name}", f"leave it out; type {source.type!r} doesn't take it")


def _check_pair(settings: RunSettings, first: str, second: str) -> None:
    for name, other in ((first, second), (second, first)):
        if not _is_given(settings, name):
            raise _invalid(name, f"is missing; {other} needs it")


def _is_given(settings: RunSettings, name: str) -> bool:
    return getattr(settings, name) not in (None, "")


def _invalid(field: str, reason: str) -> RejectedError:
    return RejectedError(INVALID_REQUEST, f"{field}: {reason}", field)


def _wrong(field: str, reason: str) -> RejectedError:
    return RejectedError(INVALID_VALUE, f"{field}: {reason}", field)
