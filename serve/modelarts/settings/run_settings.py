"""The settings of a job: code or algorithm, data, parameters, workers, resources. Unset fields are null."""

from __future__ import annotations

import posixpath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from tandem.serve.api.wire.requests import RequestBody

MAX_LONG = 2**63 - 1
Long = Annotated[int, Field(strict=True, ge=0, le=MAX_LONG)]
Url = Annotated[str, Field(max_length=1024)]


def _text(value: Any) -> Any:
    """Accept JSON numbers and booleans for text, because clients send them as parameters."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


def _without_nul(value: str) -> str:
    if "\x00" in value:
        raise ValueError("must not contain a NUL character")
    return value


class Parameter(RequestBody):
    """A parameter of the user's program or of a built-in algorithm."""

    label: Annotated[str, Field(min_length=1, max_length=256), AfterValidator(_without_nul)]
    value: Annotated[str, BeforeValidator(_text), AfterValidator(_without_nul)] = ""


class DataSource(RequestBody):
    """Data of a job: a version of a dataset, or a path."""

    type: Literal["dataset", "obs"]
    dataset_id: str | None = None
    dataset_version: str | None = None
    data_url: Url | None = None


class RunSettings(RequestBody):
    """The settings of a job. A field that is null counts as unset."""

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

    def boot_file(self) -> str | None:
        """Return the boot file's path relative to the code directory, or None if it lies outside."""
        app_url, boot_file_url = self.app_url or "", self.boot_file_url or ""
        if ".." in app_url.split("/") or ".." in boot_file_url.split("/"):
            return None
        app, boot = posixpath.normpath(app_url), posixpath.normpath(boot_file_url)
        inside = boot.removeprefix(app.rstrip("/") + "/")
        return inside if inside not in (boot, "", ".") else None

    def data_urls(self) -> list[tuple[str, str]]:
        """Return the data paths, each with the name of its field."""
        urls = [("data_url", self.data_url)]
        urls += [(f"data_source[{index}].data_url", s.data_url) for index, s in enumerate(self.data_source or ())]
        return [(field, url) for field, url in urls if url]

    def datasets(self) -> list[tuple[str, str, str]]:
        """Return the dataset versions, each as the name of its field, its dataset and its version."""
        versions = [("dataset_id", self.dataset_id, self.dataset_version_id)]
        versions += [
            (f"data_source[{index}]", s.dataset_id, s.dataset_version) for index, s in enumerate(self.data_source or ())
        ]
        return [(field, dataset, version) for field, dataset, version in versions if dataset and version]
