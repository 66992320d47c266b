"""The project of a request, and the settings that it stores."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

from fastapi import Depends

from tandem.cluster.config import TandemConfig
from tandem.serve.api.auth import TrainCaller
from tandem.serve.api.services import ServicesDep
from tandem.serve.errors import NotFoundError
from tandem.serve.modelarts.api.bodies import JobRunSettings
from tandem.serve.modelarts.errors import FORBIDDEN, INVALID_REQUEST, INVALID_VALUE, WRONG_PROJECT, RejectedError
from tandem.serve.modelarts.settings.projects import project_config, project_storage
from tandem.serve.modelarts.settings.resource_specs import ResourceSpec, available_specs, find_spec
from tandem.serve.modelarts.settings.rules import Rules
from tandem.serve.modelarts.settings.run_settings import RunSettings
from tandem.serve.modelarts.store.store import ModelArtsStore

SpecLister = Callable[[], Sequence[ResourceSpec]]


@dataclass(frozen=True)
class Project:
    """The project of a request: the entity of its key."""

    id: str
    store: ModelArtsStore
    config: TandemConfig
    base_models: Collection[str]
    specs: SpecLister

    def spec(self, spec_id: int | None) -> ResourceSpec | None:
        """Return a specification by its id, or None if the cluster doesn't have it now."""
        return find_spec(self.specs(), spec_id)

    def check(self, settings: RunSettings) -> dict[str, Any]:
        """Return the settings in their stored form. Raises RejectedError if they break a rule."""
        storage = project_storage(self.config, self.id)
        Rules(self.specs(), storage, self.base_models).check(settings)
        return settings.model_dump(mode="json", exclude_none=True)

    def check_runnable(self, wanted: JobRunSettings) -> dict[str, Any]:
        """Return the stored settings of a job, completed from saved configuration and flavor. Raises RejectedError."""
        try:
            return self._check_runnable(wanted)
        except RejectedError as error:
            raise error.within("config") from None  # its place in the body of a job

    def _check_runnable(self, wanted: JobRunSettings) -> dict[str, Any]:
        settings = self._complete(wanted)
        stored = self.check(settings)
        if settings.model_id is None and not project_config(self.config, self.id).run_code:
            raise RejectedError(
                FORBIDDEN,
                f"Project {self.id} isn't allowed to run its own code on this cluster, because the code would run as "
                "the service's user. The operator can allow it in the configuration: "
                f"projects: {{{self.id}: {{run_code: true}}}}.",
                "app_url",
            )
        return stored

    def _complete(self, wanted: JobRunSettings) -> RunSettings:
        own = wanted.model_dump(exclude_none=True, include=set(RunSettings.model_fields))
        if wanted.flavor is not None:
            if "spec_id" in own:
                raise RejectedError(
                    INVALID_REQUEST, "flavor: can't be sent together with spec_id; choose one", "flavor"
                )
            own["spec_id"] = self._spec_id(wanted.flavor.code)
        saved: dict[str, Any] = {}
        if wanted.config_name is not None:
            try:
                saved = self.store.configs.get(self.id, wanted.config_name).settings
            except NotFoundError as error:
                raise RejectedError(INVALID_VALUE, f"config_name: {error}", "config_name") from None
        for groups in _EXCLUSIVE:  # another source of code or data replaces the saved one as a whole
            chosen = [group for group in groups if any(name in own for name in group)]
            dropped = {name for group in groups if chosen and group not in chosen for name in group}
            saved = {name: value for name, value in saved.items() if name not in dropped}
        return RunSettings.model_validate(saved | own)

    def _spec_id(self, code: str) -> int:
        for spec in self.specs():
            if spec.spec_code == code:
                return spec.spec_id
        known = ", ".join(spec.spec_code for spec in self.specs())
        raise RejectedError(
            INVALID_VALUE, f"flavor: there is no resource specification {code!r}; choose one of: {known}", "flavor"
        )


_EXCLUSIVE: tuple[tuple[tuple[str, ...], ...], ...] = (
    (("model_id",), ("app_url", "boot_file_url", "engine_id"), ("user_image_url", "user_command")),
    (("data_url",), ("dataset_id", "dataset_version_id"), ("data_source",)),
)
"""Groups of settings that exclude each other: the sources of code, and the sources of data."""


def cluster_specs(services: ServicesDep) -> SpecLister:
    """Return the function that lists specifications. It asks Ray, so tests without a cluster override it."""
    return partial(available_specs, services.config)


def _project(
    project_id: str, caller: TrainCaller, services: ServicesDep, specs: Annotated[SpecLister, Depends(cluster_specs)]
) -> Project:
    """Return the project in the URL. Raises RejectedError if the key belongs to another project."""
    if project_id != caller.entity:
        raise RejectedError(
            WRONG_PROJECT,
            f"This key belongs to project {caller.entity!r}, and the URL names project {project_id!r}. "
            "Use a key of that project.",
            "project_id",
        )
    store = ModelArtsStore(services.store.database)
    return Project(project_id, store, services.config, services.base_models, specs)


ProjectDep = Annotated[Project, Depends(_project)]
