"""The operations of the API, written once for both clients."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tandem.client.capturing.rollout import Rollout
from tandem.client.errors import JobCancelledError, JobFailedError
from tandem.client.flows import Call, Deadline, Flow, Item, Pause, given, pages, pauses
from tandem.client.records import ApiKey, Artifact, Checkpoint, Dataset, Event, Health, Job, Model, Page, Version

LONGEST_WAIT_S = 30.0


# Models


def register_model(
    name: str,
    *,
    project: str,
    base_model: str,
    entity: str | None = None,
    return_existing: bool = True,
    lora: Mapping[str, Any] | None = None,
) -> Call[Model]:
    """Register a model, or return the existing one of this name.

    Args:
        entity: default: the entity of the key.
        return_existing: if False, raise ConflictError when the name is taken. Such a request is never retried.
        lora: LoRA settings of its own: any of r, alpha, target_modules, seed. Default: those of the base model.
    """
    body = register_body(name, project, base_model, entity, return_existing)
    if lora is not None:
        body["lora"] = dict(lora)
    return Call("POST", "/v1/preview/models", Model.parse, json=body, is_safe=return_existing)


def register_body(
    name: str, project: str, base_model: str, entity: str | None, return_existing: bool
) -> dict[str, Any]:
    """Return the body of a request that registers a model."""
    return {
        "entity": entity,
        "project": project,
        "name": name,
        "base_model": base_model,
        "return_existing": return_existing,
    }


def get_model(model: Model | str) -> Call[Model]:
    """Return a model, with its newest version, by its id."""
    return Call("GET", f"/v1/preview/models/{_part(model)}", Model.parse)


def models(*, project: str | None = None, name: str | None = None, newest_first: bool = False) -> Flow[Model]:
    """Iterate over the models of the key's entity, by time of registration."""
    return pages("/v1/preview/models", Model.parse, project=project, name=name, order=_order(newest_first))


def delete_model(model: Model | str) -> Call[None]:
    """Delete a model with all its versions. Its open jobs fail."""
    return Call("DELETE", f"/v1/preview/models/{_part(model)}", _nothing)


def versions(model: Model | str, after: int = 0, wait_s: float = 0.0) -> Call[list[Version]]:
    """Return up to 100 versions newer than step `after`, oldest first.

    If there is none, wait up to `wait_s` (at most 60) for one; an empty list means that none came.
    """
    params = {"after": after, "wait": wait_s, "limit": 100}
    page = Page.parser(Version.parse)
    return Call("GET", f"/v1/preview/models/{_part(model)}/versions", lambda data: page(data).data, params)


def wait_for_version(model: Model | str, step: int, timeout_s: float | None = None) -> Flow[Version]:
    """Wait until the model has version `step` or a newer one, and return the oldest such version.

    Raise WaitTimeoutError after `timeout_s`. A job that fails makes no version: see `wait`.
    """
    deadline = Deadline(timeout_s, f"version {step} of model {_id(model)}")
    while True:
        found: list[Version] = yield versions(model, max(step - 1, 0), min(LONGEST_WAIT_S, deadline.remaining_s()))
        if found:
            yield Item(found[0])
            return
        deadline.check()


def checkpoints(model: Model | str, *, newest_first: bool = False) -> Flow[Checkpoint]:
    """Iterate over the model's versions with their metrics, by step."""
    return pages(f"/v1/preview/models/{_part(model)}/checkpoints", Checkpoint.parse, order=_order(newest_first))


def delete_checkpoints(model: Model | str, steps: Sequence[int]) -> Call[list[int]]:
    """Delete versions permanently. Return the steps that didn't exist."""
    path, body = f"/v1/preview/models/{_part(model)}/checkpoints", {"steps": list(steps)}
    return Call("DELETE", path, lambda data: list(data["not_found_steps"]), json=body)


# Training jobs


def train(model: Model | str, groups: Sequence[Any], *, idempotency_key: str | None = None, **config: Any) -> Call[str]:
    """Post trajectory groups as a training job and return the job's id.

    The request carries an idempotency key, so a retry after a lost answer never makes a second job.

    Args:
        groups: trajectory groups as dictionaries or pydantic objects; trajectories may be rollouts of `capture`, and
            turns the OpenAI client's Choice objects.
        idempotency_key: default: a new one. Pass your own to post the same job again after a crash of your program.
        config: options of the job, like learning_rate=1e-3 (`experimental_config`).
    """
    body = {"model_id": _id(model), "trajectory_groups": groups, "experimental_config": config}
    return post_job(json.dumps(body, default=_plain).encode(), idempotency_key=idempotency_key)


def post_job(body: bytes, *, content_encoding: str | None = None, idempotency_key: str | None = None) -> Call[str]:
    """Post a training job whose JSON is encoded already, perhaps compressed (gzip or zstd). Return the job's id."""
    headers = {"Content-Type": "application/json", "Idempotency-Key": idempotency_key or str(uuid.uuid4())}
    if content_encoding:
        headers["Content-Encoding"] = content_encoding
    path = "/v1/preview/training-jobs"
    return Call("POST", path, lambda data: str(data["id"]), content=body, headers=headers, is_safe=True)


def train_sft(
    model: Model | str, dataset: Dataset | str, *, idempotency_key: str | None = None, **config: Any
) -> Call[str]:
    """Post a supervised job on a dataset and return the job's id. It is followed as other training jobs.

    The request carries an idempotency key, so a retry after a lost answer never makes a second job.

    Args:
        dataset: from `create_dataset`, or its address, like tandem-dataset:///...
        config: options of the job: batch_size, learning_rate (a number, or a list with one for each batch),
            assistant_turns ("all" or "last"), metric_logging.
    """
    url = dataset if isinstance(dataset, str) else dataset.url
    body = {"model_id": _id(model), "training_data_url": url, "config": config}
    headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
    path = "/v1/preview/sft-training-jobs"
    return Call("POST", path, lambda data: str(data["id"]), json=body, headers=headers, is_safe=True)


def create_dataset(rows: Iterable[Any] | bytes | Path) -> Call[Dataset]:
    """Store rows for supervised training, and return them as a dataset. The same rows again give the same dataset.

    Args:
        rows: JSON objects or pydantic objects with `messages` and, if there are any, `tools`; or JSON lines as bytes,
            or a file of them.
    """
    if isinstance(rows, Path):
        rows = rows.read_bytes()
    if not isinstance(rows, bytes):
        rows = b"".join(json.dumps(row, default=_plain).encode() + b"\n" for row in rows)
    headers = {"Content-Type": "application/jsonl"}
    return Call("POST", "/v1/preview/datasets", Dataset.parse, content=rows, headers=headers, is_safe=True)


def get_dataset(dataset: Dataset | str) -> Call[Dataset]:
    """Return a dataset by its id."""
    return Call("GET", f"/v1/preview/datasets/{_part(dataset)}", Dataset.parse)


def datasets(*, newest_first: bool = True) -> Flow[Dataset]:
    """Iterate over the entity's datasets, newest first by default."""
    return pages("/v1/preview/datasets", Dataset.parse, order=_order(newest_first))


def delete_dataset(dataset: Dataset | str) -> Call[None]:
    """Delete a dataset. Raise ConflictError while a queued or running job uses it."""
    return Call("DELETE", f"/v1/preview/datasets/{_part(dataset)}", _nothing)


def get_job(job: Job | str) -> Call[Job]:
    """Return a job by its id."""
    return Call("GET", f"/v1/preview/training-jobs/{_part(job)}", Job.parse)


def jobs(*, model: Model | str | None = None, state: str | None = None, newest_first: bool = True) -> Flow[Job]:
    """Iterate over the entity's training jobs in order of acceptance, newest first by default."""
    model_id = None if model is None else _id(model)
    return pages("/v1/preview/training-jobs", Job.parse, model_id=model_id, state=state, order=_order(newest_first))


def cancel_job(job: Job | str) -> Call[Job]:
    """Cancel a queued job now, a running one before its next gradient step. An ended job stays as it is."""
    return Call("POST", f"/v1/preview/training-jobs/{_part(job)}/cancel", Job.parse, is_safe=True)


def wait(job: Job | str, timeout_s: float | None = None) -> Flow[Job]:
    """Wait until a job has succeeded and return it; its `step` is the new version.

    Raise JobFailedError or JobCancelledError with the service's sentence, or WaitTimeoutError after `timeout_s`.
    """
    deadline = Deadline(timeout_s, f"the end of training job {_id(job)}")
    waits = pauses()
    while True:
        found: Job = yield get_job(job)
        match found.state:
            case "succeeded":
                yield Item(found)
                return
            case "failed":
                raise JobFailedError(found)
            case "cancelled":
                raise JobCancelledError(found)
        deadline.check()
        yield Pause(min(next(waits), deadline.remaining_s()))


def events(job: Job | str, after: str | None = None) -> Flow[Event]:
    """Iterate over a job's events as they come, until the job ends (training_ended or training_failed).

    `after`: an event's id, to continue after it.
    """
    waits = pauses()
    while True:
        found: list[Event] = yield new_events(job, after)
        for event in found:
            after = event.id
            yield Item(event)
            if event.ends_job:
                return
        if found:
            waits = pauses()
        else:
            yield Pause(next(waits))


def new_events(job: Job | str, after: str | None = None) -> Call[list[Event]]:
    """Return up to 1000 events of a job after the event with id `after`, without waiting for more."""
    page = Page.parser(Event.parse)
    path, params = f"/v1/preview/training-jobs/{_part(job)}/events", given(after=after, limit=1000)
    return Call("GET", path, lambda data: page(data).data, params)


def artifacts(job: Job | str) -> Flow[Artifact]:
    """Iterate over the files that a job left, by name: with `plot_tensors=True`, pictures of its packed sequences."""
    return pages(f"/v1/preview/training-jobs/{_part(job)}/artifacts", Artifact.parse)


def download_artifact(job: Job | str, artifact: Artifact | str) -> Call[bytes]:
    """Return the contents of a file that a job left."""
    path = f"/v1/preview/training-jobs/{_part(job)}/artifacts/{_part(artifact)}"
    return Call("GET", path, bytes, is_json=False)


# Keys and health


def keys() -> Flow[ApiKey]:
    """Iterate over the entity's API keys, without their secrets. Needs an admin key."""
    return pages("/v1/preview/keys", ApiKey.parse)


def create_key(name: str, role: str = "train") -> Call[ApiKey]:
    """Create an API key for the entity; only this answer has its secret (`key`). Needs an admin key."""
    return Call("POST", "/v1/preview/keys", ApiKey.parse, json={"name": name, "role": role})


def revoke_key(key: ApiKey | str) -> Call[None]:
    """Revoke a key by its id. Needs an admin key."""
    return Call("DELETE", f"/v1/preview/keys/{_part(key)}", _nothing)


def usage(
    *,
    begin: str | None = None,
    end: str | None = None,
    group_by: Sequence[str] = (),
    after: str | None = None,
    limit: int = 1000,
) -> Call[dict[str, Any]]:
    """Return what the entity has used and what that cost: a page of groups, and the total of all.

    Args:
        begin: a day or time in ISO format, without a zone in UTC; default: 7 days before `end`.
        end: the time before which it was used; default: now.
        group_by: up to three of base_model, day, hour, job, key, model, phase, project, version.
        after: the `last_id` of the page before.
    """
    params = given(**{"from": begin}, to=end, group_by=list(group_by) or None, after=after, limit=limit)
    return Call("GET", "/v1/preview/usage", dict, params)


def usage_csv(*, begin: str | None = None, end: str | None = None, group_by: Sequence[str] = ()) -> Call[bytes]:
    """Return all groups of `usage` as CSV."""
    params = given(**{"from": begin}, to=end, group_by=list(group_by) or None, format="csv")
    return Call("GET", "/v1/preview/usage", bytes, params, is_json=False)


def health() -> Call[Health]:
    """Return the health of the service, with the reasons if a part of it doesn't work."""
    return Call("GET", "/health", Health.parse, accepts=(503,))


# Helpers


def _id(named: Any) -> str:
    return named if isinstance(named, str) else str(named.id)


def _part(named: Any) -> str:
    """Return an id as a part of a path: whatever is in it, it can't lead elsewhere."""
    return quote(_id(named), safe="")


def _order(newest_first: bool) -> str:
    return "desc" if newest_first else "asc"


def _nothing(_: Any) -> None:
    return None


def _plain(value: Any) -> Any:
    """Return a captured rollout, or a pydantic object like the OpenAI client's Choice, as JSON has it."""
    if isinstance(value, Rollout):
        return value.trajectory()
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json", exclude_unset=True)
    raise TypeError(f"trajectory groups hold a {type(value).__name__}, which JSON can't express")
