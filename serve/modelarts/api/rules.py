"""Which settings go together: one code source, one data source, a specification that the cluster has."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from tandem.serve.modelarts.api.envelope import (
    FORBIDDEN,
    INVALID_REQUEST,
    INVALID_VALUE,
    PATH_DENIED,
    PATH_INVALID,
    Refused,
)
from tandem.serve.modelarts.api.schemas import RunSettings
from tandem.serve.modelarts.running.algorithms import ALGORITHMS, parse_parameters
from tandem.serve.modelarts.running.engines import ENGINES
from tandem.serve.modelarts.running.project_storage import PathDeniedError, PathInvalidError, ProjectStorage
from tandem.serve.modelarts.running.resource_specs import ResourceSpec, find_spec

DEFAULT_ENGINE_ID = 1
LEARNERS_SPEC_ID = 0
"""Built-in algorithms run on the service's own learners, whose resources are the operator's choice."""


@dataclass(frozen=True)
class Rules:
    """What the settings of this project are checked against."""

    specs: Sequence[ResourceSpec]
    storage: ProjectStorage
    base_models: Collection[str]

    def check(self, settings: RunSettings) -> ResourceSpec:
        """Returns the specification that was chosen. Raises Refused, which names the field."""
        self._check_code(settings)
        self._check_data(settings)
        self._check_paths(settings)
        return self._check_resources(settings)

    def _check_code(self, settings: RunSettings) -> None:
        if settings.user_image_url or settings.user_command:
            raise Refused(
                FORBIDDEN,
                "user_image_url: this service runs jobs as processes of a Ray cluster, which starts no containers. "
                "Send the code as app_url and boot_file_url.",
                "user_image_url",
            )
        if settings.model_id is not None:
            extra = [name for name in ("app_url", "boot_file_url", "engine_id") if _is_given(settings, name)]
            if extra:
                raise _invalid(extra[0], "leave it out: model_id chooses a built-in algorithm, which has its own code")
            if settings.model_id not in ALGORITHMS:
                known = ", ".join(f"{id} ({a.name})" for id, a in ALGORITHMS.items())
                raise _wrong("model_id", f"there is no built-in algorithm {settings.model_id}; there are {known}")
            base_model = parse_parameters(ALGORITHMS[settings.model_id], settings.parameter or ()).options.base_model
            if base_model is not None and base_model not in self.base_models:
                known = ", ".join(self.base_models)
                raise _wrong("base_model", f"there is no base model {base_model!r} here; this service has: {known}")
            return
        if not settings.app_url and not settings.boot_file_url:
            raise _invalid(
                "app_url", "a job needs code: app_url and boot_file_url, or model_id for a built-in algorithm"
            )
        for name, other in (("app_url", "boot_file_url"), ("boot_file_url", "app_url")):
            if not _is_given(settings, name):
                raise _invalid(name, f"is missing; {other} goes together with it")
        if boot_path(settings) is None:
            raise _wrong("boot_file_url", "must be a file below app_url, like /usr/app/boot.py below /usr/app/")
        if settings.engine_id is not None and settings.engine_id not in ENGINES:
            known = ", ".join(f"{id} ({engine.name})" for id, engine in ENGINES.items())
            raise _wrong("engine_id", f"there is no engine {settings.engine_id}; there are {known}")

    def _check_data(self, settings: RunSettings) -> None:
        by_dataset = _is_given(settings, "dataset_id") or _is_given(settings, "dataset_version_id")
        given = [
            name
            for name, is_given in (
                ("data_url", _is_given(settings, "data_url")),
                ("dataset_id", by_dataset),
                ("data_source", settings.data_source is not None),
            )
            if is_given
        ]
        if not given:
            raise _invalid("data_url", "a job needs data: data_url, dataset_id with dataset_version_id, or data_source")
        if len(given) > 1:
            raise _invalid(given[1], f"can't be sent together with {given[0]}: choose one")
        if by_dataset:
            for name, other in (("dataset_id", "dataset_version_id"), ("dataset_version_id", "dataset_id")):
                if not _is_given(settings, name):
                    raise _invalid(name, f"is missing; {other} goes together with it")
        if settings.data_source is not None:
            self._check_data_source(settings)

    def _check_data_source(self, settings: RunSettings) -> None:
        sources = settings.data_source or []
        if not sources:
            raise _invalid("data_source", "is empty; name at least one dataset or path")
        if len({source.type for source in sources}) > 1:
            raise _invalid("data_source", "sources of type dataset and of type obs can't be mixed")
        for index, source in enumerate(sources):
            wanted = ("dataset_id", "dataset_version") if source.type == "dataset" else ("data_url",)
            for name in ("dataset_id", "dataset_version", "data_url"):
                if name in wanted and not getattr(source, name):
                    raise _invalid(f"data_source[{index}].{name}", f"is missing; type {source.type!r} needs it")
                if name not in wanted and getattr(source, name):
                    raise _invalid(f"data_source[{index}].{name}", f"leave it out: type is {source.type!r}")

    def _check_paths(self, settings: RunSettings) -> None:
        """That every path lies below the project's roots. Whether there is anything is looked at when a job runs."""
        places = [(name, getattr(settings, name)) for name in ("app_url", "data_url", "train_url", "log_url")]
        places += [(f"data_source[{i}].data_url", s.data_url) for i, s in enumerate(settings.data_source or ())]
        for name, url in places:
            if url:
                resolve(self.storage, name, url)
        pairs = [("dataset_id", settings.dataset_id, settings.dataset_version_id)]
        pairs += [
            (f"data_source[{i}]", s.dataset_id, s.dataset_version) for i, s in enumerate(settings.data_source or ())
        ]
        for name, dataset_id, version in pairs:
            if dataset_id and version:
                try:
                    self.storage.dataset(dataset_id, version)
                except PathInvalidError as error:
                    raise Refused(PATH_INVALID, f"{name}: {error}", name) from error

    def _check_resources(self, settings: RunSettings) -> ResourceSpec:
        if settings.worker_server_num is None:
            raise _invalid("worker_server_num", "is missing; say how many workers run the job")
        if settings.spec_id is None:
            raise _invalid("spec_id", "is missing; GET job/resource-specs lists what there is")
        spec = find_spec(self.specs, settings.spec_id)
        is_learners = settings.spec_id == LEARNERS_SPEC_ID
        if spec is None or is_learners != (settings.model_id is not None):
            fitting = [s for s in self.specs if (s.spec_id == LEARNERS_SPEC_ID) == (settings.model_id is not None)]
            known = ", ".join(f"{s.spec_id} ({s.spec_code})" for s in fitting)
            why = "doesn't fit a job of this kind" if spec else "doesn't exist"
            raise _wrong("spec_id", f"resource specification {settings.spec_id} {why}; choose one of: {known}")
        if settings.worker_server_num > spec.max_num:
            raise _wrong("worker_server_num", f"the cluster holds at most {spec.max_num} workers of {spec.spec_code}")
        return spec


def boot_path(settings: RunSettings) -> str | None:
    """The boot file relative to the code directory; None when it isn't inside."""
    app, boot = (posixpath.normpath(url or "") for url in (settings.app_url, settings.boot_file_url))
    if ".." in (settings.app_url or "").split("/") or ".." in (settings.boot_file_url or "").split("/"):
        return None
    inside = boot.removeprefix(app.rstrip("/") + "/")
    return inside if inside != boot and inside not in ("", ".") else None


def resolve(storage: ProjectStorage, field: str, url: str) -> Any:
    """Where a URL of a request leads. Raises Refused, which names the field."""
    try:
        return storage.resolve(url)
    except PathDeniedError as error:
        raise Refused(PATH_DENIED, f"{field}: {error}", field) from error
    except PathInvalidError as error:
        raise Refused(PATH_INVALID, f"{field}: {error}", field) from error


def _is_given(settings: RunSettings, name: str) -> bool:
    value = getattr(settings, name)
    return value is not None and value != ""


def _invalid(field: str, reason: str) -> Refused:
    return Refused(INVALID_REQUEST, f"{field}: {reason}", field)


def _wrong(field: str, reason: str) -> Refused:
    return Refused(INVALID_VALUE, f"{field}: {reason}", field)
