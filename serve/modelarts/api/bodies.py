"""The request bodies of this API."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tandem.serve.api.wire.requests import RequestBody
from tandem.serve.modelarts.settings.run_settings import Long, RunSettings

ConfigName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Description = Annotated[str, Field(max_length=256)]


class CreateConfig(RunSettings):
    config_name: ConfigName
    config_desc: Description | None = None


class UpdateConfig(RunSettings):
    """Replaces a saved configuration as a whole."""

    config_desc: Description | None = None


class Flavor(RequestBody):
    """A resource specification, by its code instead of its id."""

    code: str


class JobRunSettings(RunSettings):
    """The settings of a job's version. The saved configuration `config_name` fills in the fields that are unset."""

    config_name: ConfigName | None = None
    flavor: Flavor | None = None
    create_version: bool | None = None
    pre_version_id: Long | None = None


class CreateJob(RequestBody):
    job_name: ConfigName
    job_desc: Description | None = None
    config: JobRunSettings
    workspace_id: Literal["0"] | None = None


class CreateVersion(RequestBody):
    job_desc: Description | None = None
    config: JobRunSettings


class UpdateJob(RequestBody):
    job_desc: Description


REQUEST_BODIES: tuple[type[RequestBody], ...] = (CreateConfig, UpdateConfig, CreateJob, CreateVersion, UpdateJob)
