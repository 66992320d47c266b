"""What the training-job-configs API takes and gives. Times are epoch milliseconds; what is unset is null."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from tandem.serve.api.wire.requests import RequestBody

MAX_LONG = 2**63 - 1
Long = Annotated[int, Field(strict=True, ge=0, le=MAX_LONG)]
ConfigName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
Description = Annotated[str, Field(max_length=256)]
Url = Annotated[str, Field(max_length=1024)]


def _text(value: Any) -> Any:
    """Numbers and booleans as they are written in JSON: parameters are text, but people send numbers."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


def _one_line(value: str) -> str:
    if "\x00" in value:
        raise ValueError("must not contain a NUL character")
    return value


Text = Annotated[str, BeforeValidator(_text), AfterValidator(_one_line)]


class Parameter(RequestBody):
    """A run parameter of the user's code."""

    label: Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_one_line)]
    value: Text = ""


class DataSource(RequestBody):
    """Data of a job: a version of a registered dataset, or a path."""

    type: Literal["dataset", "obs"]
    dataset_id: str | None = None
    dataset_version: str | None = None
    data_url: Url | None = None


class RunSettings(RequestBody):
    """What a job runs, on what, with what. Every field may also be null, which means unset."""

    worker_server_num: Annotated[int, Field(strict=True, ge=1, le=2**31 - 1)] | None = None
    app_url: Url | None = None
    boot_file_url: Url | None = None
    model_id: Long | None = None
    parameter: list[Parameter] | None = None
    spec_id: Long | None = None
    data_url: Url | None = None
    dataset_id: str | None = None
    dataset_version_id: str | None = None
    data_source: list[DataSource] | None = None
    engine_id: Long | None = None
    train_url: Url | None = None
    log_url: Url | None = None
    user_image_url: Url | None = None
    user_command: str | None = None


class CreateConfig(RunSettings):
    config_name: ConfigName
    config_desc: Description | None = None


class UpdateConfig(RunSettings):
    """Replaces a saved configuration as a whole."""

    config_desc: Description | None = None


class Flavor(RequestBody):
    """Names a resource specification by its code instead of its id."""

    code: str


class JobRunSettings(RunSettings):
    """The settings of a job's version. `config_name` fills in what isn't given from a saved configuration."""

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
