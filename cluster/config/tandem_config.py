"""The whole configuration, from a YAML file and `TANDEM_*` environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from tandem.cluster.config.base_model import TINY, BaseModelConfig
from tandem.cluster.config.observability import AlertRulesConfig, LoggingConfig, TracingConfig, WebhookConfig
from tandem.cluster.config.prices import PricesConfig
from tandem.cluster.config.service import (
    CoordinatorConfig,
    DeadlinesConfig,
    HttpConfig,
    LimitsConfig,
    ProjectConfig,
    ResourceSpecConfig,
    RetentionConfig,
    TrajectoriesConfig,
)
from tandem.cluster.config.tinker import TinkerConfig
from tandem.cluster.sqlite_urls import sqlite_url
from tandem.rl.yaml_files import load_mapping


class TandemConfig(BaseSettings):
    """The whole service. Without a file: the built-in tiny model on this machine's CPU.

    Values come from these sources, the first wins: arguments, `TANDEM_*` environment variables
    (`TANDEM_HTTP__PORT=9000`), the YAML file, the defaults.
    """

    model_config = SettingsConfigDict(
        env_prefix="TANDEM_",
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    home: Path = Field(Path("~/.tandem"), description="Directory of the store and the artifacts, unless these are set.")
    base_models: Annotated[tuple[BaseModelConfig, ...], Field(min_length=1)] = (TINY,)
    store_url: str | None = Field(
        None,
        repr=False,
        description="Database: sqlite:////path/to/file.db or postgresql://user:password@host/database. "
        "Unset: SQLite under home.",
    )
    artifacts: str | None = Field(
        None, repr=False, description="fsspec URL of checkpoints and payloads. Unset: a folder under home."
    )
    admin_key_sha256: str | None = Field(
        None,
        pattern=r"^[0-9a-f]{64}$",
        description="SHA-256 of an admin key of entity default that is valid from the first start; "
        "`tandem keys generate` prints both.",
    )
    http: HttpConfig = HttpConfig()
    coordinator: CoordinatorConfig = CoordinatorConfig()
    deadlines: DeadlinesConfig = DeadlinesConfig()
    limits: LimitsConfig = LimitsConfig()
    retention: RetentionConfig = RetentionConfig()
    prices: PricesConfig = PricesConfig()
    trajectories: TrajectoriesConfig = TrajectoriesConfig()
    tinker: TinkerConfig = TinkerConfig()
    projects: dict[str, ProjectConfig] = Field({}, description="Projects by name; all others have the defaults.")
    resource_specs: tuple[ResourceSpecConfig, ...] = ()
    logging: LoggingConfig = LoggingConfig()
    tracing: TracingConfig | None = Field(None, description="Traces in OpenTelemetry's form. Unset: none.")
    alerts: tuple[WebhookConfig, ...] = Field((), description="Addresses that get a POST for each alert.")
    alert_rules: AlertRulesConfig = AlertRulesConfig()

    @field_validator("home", mode="before")
    @classmethod
    def _named(cls, home: object) -> object:
        if isinstance(home, str) and not home.strip():
            raise ValueError("it names no directory; write one, or unset TANDEM_HOME for ~/.tandem")
        return home

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        try:
            return home.expanduser().absolute()
        except RuntimeError:  # the user has no home directory
            raise ValueError(f"{home} needs a home directory; set HOME, or TANDEM_HOME to an absolute path") from None

    @model_validator(mode="after")
    def _distinct_base_models(self) -> TandemConfig:
        names = [base.name for base in self.base_models]
        if duplicates := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(
                f"base_models has {', '.join(duplicates)} more than once; give each base model its own name."
            )
        return self

    @model_validator(mode="after")
    def _priced_base_models(self) -> TandemConfig:
        names = {base.name for base in self.base_models}
        if unknown := sorted(set(self.prices.base_models) - names):
            raise ValueError(
                f"prices.base_models has {', '.join(unknown)}, which isn't among the base models: "
                f"{', '.join(sorted(names))}."
            )
        return self

    @property
    def resolved_store_url(self) -> str:
        return self.store_url or sqlite_url(self.home / "tandem.db")

    @property
    def artifacts_root(self) -> str:
        return self.artifacts or str(self.home / "artifacts")

    @property
    def runs_code(self) -> bool:
        """True if any project may run its own programs."""
        return any(project.run_code for project in self.projects.values())

    def keeps_trajectories(self, entity: str) -> bool:
        """Return whether the project lets trajectories and what is derived from them be kept."""
        project = self.projects.get(entity)
        return project is None or project.keep_trajectories

    def base_model(self, name: str) -> BaseModelConfig:
        """Return the base model of that name, which must be configured."""
        return next(base for base in self.base_models if base.name == name)

    @classmethod
    def load(cls, source: str | Path | Mapping[str, object] | None = None) -> TandemConfig:
        """Read a YAML file or an equal mapping, and the environment. Raises ValueError that lists all faults."""
        if isinstance(source, str | Path) and not os.path.exists(source):
            raise ValueError(f"There is no configuration file at {source}.")
        fields = load_mapping(source) if isinstance(source, str | Path) else source
        try:
            loaded = cls() if fields is None else _reading(fields)()
        except ValidationError as error:
            faults = "\n".join(f"  {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            origin = (
                "from the environment " if source is None else f"{source} " if isinstance(source, str | Path) else ""
            )
            raise ValueError(f"The configuration {origin}is not valid:\n{faults}") from None
        return cls.model_construct(**dict(loaded))


def _reading(source: Mapping[str, object]) -> type[TandemConfig]:
    """Return the configuration's class with `source` as a source below the environment."""

    class FromSource(TandemConfig):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            return init_settings, env_settings, InitSettingsSource(settings_cls, dict(source))

    return FromSource
