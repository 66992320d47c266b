"""The operator's configuration of a project, with defaults for projects that it doesn't name."""

from __future__ import annotations

from tandem.cluster.config import ProjectConfig, TandemConfig
from tandem.serve.modelarts.settings.project_storage import ProjectStorage


def project_config(config: TandemConfig, project: str) -> ProjectConfig:
    """Return the project's configuration."""
    return config.projects.get(project, ProjectConfig())


def project_storage(config: TandemConfig, project: str) -> ProjectStorage:
    """Return the project's storage; by default a folder below the service's home."""
    own = project_config(config, project)
    return ProjectStorage(own.bucket_root or str(config.home / "projects" / project), own.roots)
