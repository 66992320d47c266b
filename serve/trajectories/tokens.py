"""The tokens of one trajectory: its traces if it was trained, else the tokens that were sent, and the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from tandem.cluster.artifacts import traces_key
from tandem.cluster.errors import ArtifactError
from tandem.cluster.jobs.preparation import PayloadSource
from tandem.rl.config import TrainingConfig
from tandem.rl.errors import RLError
from tandem.rl.reports.accounting import REASONS
from tandem.rl.traces.group_trace import SequenceTrace
from tandem.rl.traces.trace_file import TraceFile, TraceFileError, TraceTable
from tandem.serve.api.services import Services
from tandem.serve.errors import ConflictError, GoneError, NotFoundError
from tandem.serve.jobs.storage import storage_errors
from tandem.serve.store.tables.training import JobRow
from tandem.serve.trajectories.ids import TrajectoryId
from tandem.serve.trajectories.token_wire import State

WRITING_S = 60.0
"""After its job has ended, a file that isn't there may still be written."""


@dataclass(frozen=True)
class FoundTokens:
    """A trajectory's tokens, and where they are from."""

    place: TrajectoryId
    model_id: str
    base_model: str
    kind: str
    state: State
    sequences: Sequence[SequenceTrace]
    reason: str | None = None
    message: str | None = None
    made_version: int | None = None
    num_choices_without_ids: int = 0


def find_tokens(services: Services, place: TrajectoryId, entity: str, as_sent: bool = False) -> FoundTokens:
    """Return the tokens of a trajectory of a job or of a log entry. `as_sent`: those of its choices in any case.

    Raises NotFoundError, ConflictError before the job has ended, and GoneError for traces that aren't kept.
    """
    try:
        job = services.store.jobs.get(place.source, entity)
    except NotFoundError:
        return _of_log(services, place, entity)
    if as_sent:
        model = services.store.models.get(job.model_id, entity)
        why = ("as_sent", "These are the tokens that it was sent with, whatever it trained.")
        return _sent(services, place, job, model.path, model.base_model, why)
    if job.state in ("queued", "running"):
        raise ConflictError(
            f"Training job {job.id} is {job.state}: its tokens have their numbers when it has succeeded. Wait for it.",
            "not_trained_yet",
            "trajectory_id",
        )
    model = services.store.models.get(job.model_id, entity)
    if job.state != "succeeded":
        message = f"Its training job is {job.state}, so nothing was trained."
        return _sent(services, place, job, model.path, model.base_model, ("job_" + job.state, message))
    table, group = _read(services, job, place.group)
    own = [one for one in group or () if one.trajectory == place.trajectory]
    if own:
        return FoundTokens(place, job.model_id, model.base_model, job.kind, "trained", own, made_version=job.step)
    return _untrained(services, place, job, model.path, model.base_model, table)


def _read(services: Services, job: JobRow, group: int) -> tuple[TraceTable | None, list[SequenceTrace] | None]:
    """Return the table of a job's traces and those of a group, as far as there are any."""
    with storage_errors():
        try:
            with services.artifacts.open_blob(traces_key(job.id, job.attempt)) as blob:
                file = TraceFile.open(blob)
                return file.table, file.group(group)
        except ArtifactError:
            return None, None
        except TraceFileError as error:
            raise GoneError(f"The traces of training job {job.id} can't be read: {error}", "traces_not_kept") from error


def _untrained(
    services: Services, place: TrajectoryId, job: JobRow, path: str, base_model: str, table: TraceTable | None
) -> FoundTokens:
    """Return the tokens of a trajectory without traces, if it trained nothing. Raises GoneError if it did."""
    if job.kind != "rl":
        raise _not_kept(services, job, table)
    found = _sent(services, place, job, path, base_model, None)
    if found.reason is not None:
        return found
    if table is None and job.num_gradient_steps:
        raise _not_kept(services, job, table)
    if table is not None and table.num_groups_not_kept:
        raise _not_kept(services, job, table)
    return _because(found, "balanced_away")


def _not_kept(services: Services, job: JobRow, table: TraceTable | None) -> GoneError | ConflictError:
    if table is not None:
        return GoneError(
            f"The traces of {table.num_groups_not_kept} groups of training job {job.id} weren't kept, this one's among "
            "them: trajectories.traces and trajectories.max_trace_bytes of the service limit them.",
            "traces_not_kept",
            "trajectory_id",
        )
    ended = job.ended_at
    if ended is not None and services.store.database.now() - ended < timedelta(seconds=WRITING_S):
        return ConflictError(
            f"The traces of training job {job.id} aren't written yet, or aren't kept. Try again in a moment.",
            "traces_not_written_yet",
            "trajectory_id",
        )
    return GoneError(
        f"Training job {job.id} has no traces: it ran before the service kept them, the configuration keeps none "
        "(trajectories.traces, or keep_trajectories of the project), or retention has deleted them.",
        "traces_not_kept",
        "trajectory_id",
    )


def _sent(
    services: Services,
    place: TrajectoryId,
    job: JobRow,
    path: str,
    base_model: str,
    why: tuple[str, str] | None,
) -> FoundTokens:
    """Return the tokens that a job's trajectory was sent with. `why` it wasn't trained, None to find out."""
    if job.kind != "rl":
        raise ConflictError(
            f"Training job {job.id} is of kind {job.kind} and {job.state}: rows of a dataset have tokens when trained.",
            "not_trained",
            "trajectory_id",
        )
    source = PayloadSource(job.payload_key, path, TrainingConfig.model_validate(job.config))
    found = _read_sent(services, place, source, job.model_id, base_model, job.kind, "not_trained")
    if why is None:
        return found if found.reason is None else _because(found, found.reason)
    return FoundTokens(**{**vars(found), "reason": why[0], "message": why[1]})


def _because(found: FoundTokens, reason: str) -> FoundTokens:
    message = f"It trained nothing: it has {REASONS[reason]}."
    return FoundTokens(**{**vars(found), "reason": reason, "message": message})


def _of_log(services: Services, place: TrajectoryId, entity: str) -> FoundTokens:
    try:
        log = services.store.logs.get(place.source, entity)
    except NotFoundError:
        raise NotFoundError(
            f"There is no trajectory {place}: the id is wrong, or it belongs to another entity.",
            "trajectory_not_found",
            "trajectory_id",
        ) from None
    model = services.store.models.get(log.model_id, entity)
    source = PayloadSource(log.payload_key, model.path, None)
    return _read_sent(services, place, source, log.model_id, model.base_model, "log", "logged")


def _read_sent(
    services: Services,
    place: TrajectoryId,
    source: PayloadSource,
    model_id: str,
    base_model: str,
    kind: str,
    state: State,
) -> FoundTokens:
    with storage_errors():
        try:
            sent = services.preparation.sent_tokens(base_model, source, place.group, place.trajectory)
        except ArtifactError:
            raise GoneError(
                f"The payload of {place.source} isn't in the artifact store any more.",
                "trajectory_removed",
                "trajectory_id",
            ) from None
        except RLError as error:
            raise ConflictError(
                f"The tokens can't be read: {error}", "unreadable_trajectory", "trajectory_id"
            ) from error
    if sent is None:
        raise NotFoundError(
            f"{place.source} has no trajectory {place.trajectory} in group {place.group}.",
            "trajectory_not_found",
            "trajectory_id",
        )
    return FoundTokens(
        place,
        model_id,
        base_model,
        kind,
        state,
        sent.sequences,
        reason=sent.reason,
        num_choices_without_ids=sent.num_choices_without_ids,
    )
