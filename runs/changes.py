"""A task file that has changed since the run began: what may change, and from when it holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tandem.runs.config import TaskConfig
from tandem.runs.errors import TaskFileError

MODEL = ("base_model", "project", "name", "entity")
FIXED = ("name", "seed", "environment", *(f"model.{field}" for field in MODEL), "rollouts.groups_per_job")
"""They decide which tasks a batch has and what is trained: with others it would be another run."""


def task_record(task: TaskConfig) -> dict[str, Any]:
    """A task as a run's state keeps it."""
    return task.model_dump(mode="json", by_alias=True)


def changes(before: dict[str, Any], task: TaskConfig, num_trained: int) -> list[str]:
    """A sentence for each field that has changed. Raises TaskFileError for one that can't."""
    now = task_record(task)
    old, new = dict(_flat(before)), dict(_flat(now))
    changed = {name: (old.get(name), new.get(name)) for name in [*old, *new] if old.get(name) != new.get(name)}
    refused = [name for name in changed if any(name == fixed or name.startswith(f"{fixed}.") for fixed in FIXED)]
    if refused:
        raise TaskFileError(
            "The task file has changed where a run that has begun can't follow:\n"
            + "\n".join(f"  {name}: {_change(changed[name])}" for name in refused)
            + f"\nPut it back to go on after {num_trained} jobs, or begin another run: another name, or another "
            "output.directory (and model.name)."
        )
    if task.training.jobs < num_trained:
        raise TaskFileError(
            f"training.jobs is {task.training.jobs}, but the run has trained {num_trained} jobs already. Name a "
            "larger number to go on."
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
