"""Changes of a task file since the run began: which are allowed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tandem.runs.config import TaskConfig
from tandem.runs.errors import TaskFileError

MODEL = ("base_model", "project", "name", "entity")
FIXED = ("name", "seed", "environment", *(f"model.{field}" for field in MODEL), "rollouts.groups_per_job")
"""They decide which tasks a batch has and which model is trained, so a run can't change them."""


def task_record(task: TaskConfig) -> dict[str, Any]:
    """Return a task as stored in a run's state."""
    return task.model_dump(mode="json", by_alias=True)


def changes(before: dict[str, Any], task: TaskConfig, num_trained: int) -> list[str]:
    """Return a phrase for each changed field. Raise TaskFileError for a field that can't change."""
    now = task_record(task)
    old, new = dict(_flat(before)), dict(_flat(now))
    changed = {name: (old.get(name), new.get(name)) for name in [*old, *new] if old.get(name) != new.get(name)}
    refused = [name for name in changed if any(name == fixed or name.startswith(f"{fixed}.") for fixed in FIXED)]
    if refused:
        raise TaskFileError(
            "The task file has changed in fields that are fixed once a run has begun:\n"
            + "\n".join(f"  {name}: {_change(changed[name])}" for name in refused)
            + f"\nRestore them to resume after {num_trained} jobs, or start another run: with another name, or another "
            "output.directory and model.name."
        )
    if task.training.jobs < num_trained:
        raise TaskFileError(
            f"training.jobs is {task.training.jobs}, but the run has already trained {num_trained} jobs. Set a larger "
            "number to train more."
        )
    return [f"{name}: {_change(values)}" for name, values in changed.items()]


def _change(values: tuple[Any, Any]) -> str:
    before, now = ("unset" if value is None else repr(value) for value in values)
    return f"{before} → {now}"


def _flat(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, item in value.items():
        if isinstance(item, dict):
            yield from _flat(item, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", item
