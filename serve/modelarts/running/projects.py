"""What the operator's configuration gives a project: its storage, and whether it may run its own code."""

from __future__ import annotations

from tandem.cluster.config import ProjectConfig, TandemConfig
from tandem.serve.modelarts.api.rules import LEARNERS_SPEC_ID
from tandem.serve.modelarts.running.project_storage import ProjectStorage
from tandem.serve.modelarts.running.resource_specs import ResourceSpec, cluster_nodes, merged, specs_of


def project_config(config: TandemConfig, project: str) -> ProjectConfig:
    return config.projects.get(project, ProjectConfig())


def project_storage(config: TandemConfig, project: str) -> ProjectStorage:
    """A project without a storage of its own has a folder under the service's home."""
    own = project_config(config, project)
    return ProjectStorage(own.bucket_root or str(config.home / "projects" / project), own.roots)


def resource_specs(config: TandemConfig) -> list[ResourceSpec]:
    """The specifications that jobs can choose: configured ones, those of the live cluster, and the learners'."""
    import ray

    live = specs_of(cluster_nodes(), ray.available_resources())
    configured = [
        ResourceSpec(
            spec.spec_id, spec.spec_code, spec.num_cpus, spec.num_gpus, spec.gpu_type, spec.max_num,
        )
        for spec in config.resource_specs
    ]  # fmt: skip
    return [learners_spec(config), *merged(configured, live)]


def learners_spec(config: TandemConfig) -> ResourceSpec:
    """What a built-in algorithm runs on: the learners of a base model, all of them, whatever it asks for."""
    learners = config.base_models[0].learners
    num_gpus = int((learners.num_gpus or 0) * learners.count)
    return ResourceSpec(
        LEARNERS_SPEC_ID, "tandem.learners", learners.num_cpus * learners.count, num_gpus, "", max_num=1
    )
