"""The configuration of the service around the base models."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tandem.cluster.config.values import Amount, Seconds
from tandem.rl.settings import Settings


class HttpConfig(Settings):
    """The HTTP server."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=1, le=65535)
    api_replicas: int = Field(1, ge=1, le=256, description="Processes that serve the API.")


class LimitsConfig(Settings):
    """Limits beyond which requests are rejected: 413 for a body, 429 for a full queue or too many streams, 507 for a
    nearly full disk."""

    max_payload_bytes: int = Field(
        1 << 30, ge=1, description="Decompressed size of a request with trajectory groups, or of an uploaded file."
    )
    max_dataset_bytes: int = Field(1 << 30, ge=1, description="Decompressed size of an uploaded dataset.")
    max_request_bytes: int = Field(32 << 20, ge=1, description="Decompressed size of any other request.")
    max_adapter_bytes: int = Field(4 << 30, ge=1, description="Decompressed size of an adapter that is imported.")
    max_open_jobs: int = Field(1000, ge=1, description="Queued and running jobs of all projects together.")
    max_open_jobs_per_project: int = Field(100, ge=1, description="Queued and running jobs of one project.")
    repeated_body_s: Seconds = Field(
        60,
        ge=0,
        description="A body that the same key posts again within this time, without an Idempotency-Key, while its job "
        "is queued or running, gets that job instead of a new one. 0: every post makes a job.",
    )
    max_streams: int = Field(
        200, ge=1, description="Open streams of changes (GET /v1/preview/changes) of one API process; a page has one."
    )
    max_streams_per_entity: int = Field(50, ge=1, description="The same for the keys of one entity.")
    min_free_disk_bytes: int = Field(
        1 << 30, ge=0, description="Free space on the disk of the artifacts below which jobs are rejected."
    )


class DeadlinesConfig(Settings):
    """Deadlines in seconds. A stage of a job that exceeds its deadline fails or is retried."""

    start_engine_s: Seconds = Field(600, gt=0, description="Start of an engine.")
    engine_answer_s: Seconds = Field(
        60,
        gt=0,
        description="An engine whose core doesn't answer for this long is replaced; must exceed its longest step.",
    )
    start_learners_s: Seconds = Field(600, gt=0, description="Start of a learner group.")
    prepare_s: Seconds = Field(
        600, gt=0, description="From a stored payload to packed sequences; also writing version 0."
    )
    load_s: Seconds = Field(300, gt=0, description="Loading a policy version into the learners.")
    score_s: Seconds = Field(1800, gt=0, description="Old or reference logprobs of a whole job.")
    step_s: Seconds = Field(900, gt=0, description="One gradient step.")
    step_progress_s: Seconds = Field(
        60,
        gt=0,
        description="A learner that makes no progress in a gradient step for this long, and for ten times the usual "
        "time of the row in work, is replaced. Ten times as long for its first rows.",
    )
    checkpoint_s: Seconds = Field(600, gt=0, description="Writing and uploading a checkpoint.")
    publish_s: Seconds = Field(60, gt=0, description="Recording a new version while the store doesn't answer.")
    receive_s: Seconds = Field(
        60, gt=0, description="A client that pauses for this long in the middle of a request is disconnected."
    )
    inference_s: Seconds = Field(600, gt=0, description="From the arrival of an inference request to its last token.")


class RetentionConfig(Settings):
    """What is kept of each model's versions. `tandem retention` shows what would be deleted, with sizes.

    The newest version stays always, and so does all that a queued or running job needs.
    """

    keep_versions: int | None = Field(
        None, ge=1, description="Newest versions of each model that stay; older ones are deleted. Unset: all stay."
    )
    keep_optimizer: int | None = Field(
        None,
        ge=1,
        description="Newest versions of each model that keep their optimizer state, two thirds of a checkpoint. A "
        "version without it still answers requests; training that starts from it begins with a new optimizer. "
        "Unset: all keep it.",
    )


class TrajectoriesConfig(Settings):
    """What is kept of trajectories for people who look at them, and how long.

    Payloads of ended jobs and of logs, with all that is derived from them, exceed the limits from the oldest on; the
    service applies them every hour. Models, versions, metrics and events stay, and so does all that a queued or running
    job needs. `tandem retention` shows what would be deleted.
    """

    keep_days: float | None = Field(
        90, gt=0, le=36500, description="Days after their arrival. Unset: as long as there is room."
    )
    keep_bytes: int | None = Field(
        200 << 30, ge=0, description="Size of all payloads together, as they are stored. Unset: no limit."
    )
    traces: Literal["all", "sample", "none"] = Field(
        "all",
        description="Whether a job keeps what each trained token had at its gradient step: logprobs, advantage, mask. "
        "sample: of trace_groups of its groups, spread evenly over the job.",
    )
    trace_groups: int = Field(8, ge=1, description="Groups of a job that are traced with traces: sample.")
    max_trace_bytes: int = Field(
        64 << 20,
        ge=0,
        description="Traces of one job, before compression. Groups beyond are left out, and the job says how many.",
    )


class CoordinatorConfig(Settings):
    """The coordinator, which runs the jobs."""

    poll_s: Seconds = Field(
        0.4, gt=0, description="How often the coordinator looks for a queued job. With SQLite it notices one sooner."
    )
    lease_s: Seconds = Field(
        30, gt=0, description="Another coordinator may take over a job whose claim wasn't renewed for this long."
    )
    max_attempts: int = Field(3, ge=1, description="Attempts to run a job whose learners die or miss a deadline.")
    stop_grace_s: Seconds = Field(
        30, ge=0, description="Time for running jobs to finish at a shutdown; then they are queued again."
    )


class ProjectConfig(Settings):
    """Rights of a project (the entity of its keys) beyond training: its storage, and whether its jobs run its code."""

    run_code: bool = Field(
        False, description="Allow jobs to run the project's programs on this cluster, as the user of the service."
    )
    bucket_root: str | None = Field(
        None, description="fsspec URL below which /bucket/path and obs://bucket/path lie. Unset: a folder under home."
    )
    roots: tuple[str, ...] = Field(
        (), description="fsspec URLs; jobs may name s3://, file:// and other paths below them."
    )
    keep_trajectories: bool = Field(
        True,
        description="Keep and index the trajectories of the project's jobs and logs. Off: they are deleted when their "
        "job has ended, and nobody sees them.",
    )


class ResourceSpecConfig(Settings):
    """A worker size that jobs can choose, in addition to those derived from the cluster."""

    spec_id: int = Field(
        ge=1, le=2**31 - 1, description="Id; replaces a size derived from the cluster that has the same id."
    )
    spec_code: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    num_cpus: Amount = Field(gt=0)
    num_gpus: int = Field(0, ge=0)
    gpu_type: str = ""
    max_num: int = Field(ge=1, description="Most workers of this size in one job.")
