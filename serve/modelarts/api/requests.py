"""Which project a request is for, and what its settings come to."""

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
from tandem.serve.modelarts.api.envelope import FORBIDDEN, INVALID_REQUEST, INVALID_VALUE, WRONG_PROJECT, Refused
from tandem.serve.modelarts.api.rules import Rules
from tandem.serve.modelarts.api.schemas import JobRunSettings, RunSettings
from tandem.serve.modelarts.running.projects import project_config, project_storage, resource_specs
from tandem.serve.modelarts.running.resource_specs import ResourceSpec, find_spec
from tandem.serve.modelarts.store.store import ModelArtsStore

SpecLister = Callable[[], Sequence[ResourceSpec]]


@dataclass(frozen=True)
class Project:
    """The project of a request, which its key may use. A project is what an entity of keys is elsewhere."""

    id: str
    store: ModelArtsStore
    config: TandemConfig
    base_models: Collection[str]
    specs: SpecLister

    def spec(self, spec_id: int | None) -> ResourceSpec | None:
        """None when the cluster doesn't have it (any more)."""
        return find_spec(self.specs(), spec_id)

    def check(self, settings: RunSettings) -> dict[str, Any]:
        """The settings as they are stored. Raises Refused."""
        storage = project_storage(self.config, self.id)
        Rules(self.specs(), storage, self.base_models).check(settings)
        return settings.model_dump(mode="json", exclude_none=True)

    def check_runnable(self, wanted: JobRunSettings) -> dict[str, Any]:
        """The settings of a job, completed from the saved configuration and the flavor it names. Raises Refused."""
        settings = self._complete(wanted)
        stored = self.check(settings)
        if settings.model_id is None and not project_config(self.config, self.id).run_code:
            raise Refused(
                FORBIDDEN,
                f"Project {self.id} may not run code of its own on this cluster: the code would run as the service's "
                f"user. The operator allows it with projects: {{{self.id}: {{run_code: true}}}} in the configuration.",
                "app_url",
            )
        return stored

    def _complete(self, wanted: JobRunSettings) -> RunSettings:
        own = wanted.model_dump(exclude_none=True, include=set(RunSettings.model_fields))
        if wanted.flavor is not None:
            if "spec_id" in own:
                raise Refused(INVALID_REQUEST, "flavor: can't be sent together with spec_id: choose one", "flavor")
            own["spec_id"] = self._spec_id(wanted.flavor.code)
        saved: dict[str, Any] = {}
        if wanted.config_name is not None:
            try:
                saved = self.store.configs.get(self.id, wanted.config_name).settings
            except NotFoundError as error:
                raise Refused(INVALID_VALUE, f"config_name: {error}", "config_name") from None
        for groups in _EXCLUSIVE:  # another source of code or data takes the place of the saved one as a whole
            chosen = [group for group in groups if any(name in own for name in group)]
            dropped = {name for group in groups if chosen and group not in chosen for name in group}
            saved = {name: value for name, value in saved.items() if name not in dropped}
        return RunSettings.model_validate(saved | own)

    def _spec_id(self, code: str) -> int:
        for spec in self.specs():
            if spec.spec_code == code:
                return spec.spec_id
        known = ", ".join(spec.spec_code for spec in self.specs())
        raise Refused(
            INVALID_VALUE, f"flavor: there is no resource specification {code!r}; there are {known}", "flavor"
        )


_EXCLUSIVE: tuple[tuple[tuple[str, ...], ...], ...] = (
    (("model_id",), ("app_url", "boot_file_url", "engine_id"), ("user_image_url", "user_command")),
    (("data_url",), ("dataset_id", "dataset_version_id"), ("data_source",)),
)
"""Settings of which one group excludes the others: where the code comes from, where the data does."""


def cluster_specs(services: ServicesDep) -> SpecLister:
    """How to list the resource specifications of the live cluster. Tests without a cluster override it."""
    return partial(resource_specs, services.config)


def _project(
    project_id: str, caller: TrainCaller, services: ServicesDep, specs: Annotated[SpecLister, Depends(cluster_specs)]
) -> Project:
    """Return the project in the URL. Raises Refused if the key belongs to another project."""
    if project_id != caller.entity:
        raise Refused(
            WRONG_PROJECT,
            f"This key belongs to project {caller.entity!r}, not to the one in the URL. Use a key of that project.",
            "project_id",
        )
    store = ModelArtsStore(services.store)
    return Project(project_id, store, services.config, services.base_models, specs)


ProjectDep = Annotated[Project, Depends(_project)]
