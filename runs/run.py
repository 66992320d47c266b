"""A whole run, from its task file to its plot."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tandem.rl.environments.base import Environment
from tandem.rl.environments.loading import EnvironmentLoadingError, load_environment
from tandem.rl.environments.rollouts import TaskStream
from tandem.runs.changes import changes, task_record
from tandem.runs.chat import OpenAIChat
from tandem.runs.config import TaskConfig, load_task
from tandem.runs.directory import RunDirectory, RunModel
from tandem.runs.errors import ForeignVersionError, RunError, TaskFileError
from tandem.runs.evaluating import Evaluator, versions_to_evaluate
from tandem.runs.patience import Patience
from tandem.runs.report import Report
from tandem.runs.rolling import BatchRoller, GroupRoller
from tandem.runs.service import RegisteredModel, TrainingService
from tandem.runs.stopwatch import Stopwatch
from tandem.runs.training import Trainer
from tandem.runs.versions import VersionWatch


@dataclass(frozen=True)
class Plan:
    """A task file and what it names, before anything is started."""

    task: TaskConfig
    environment: Environment
    train_tasks: Sequence[object]
    eval_tasks: Sequence[object]


def plan(path: Path) -> Plan:
    """Reads a task file and makes its environment. Raises TaskFileError."""
    task = load_task(path)
    try:
        environment = load_environment(task.environment.class_, task.environment.options, path.parent)
    except EnvironmentLoadingError as error:
        raise TaskFileError(f"The environment of {path}: {error}") from error
    splits = {"train": environment.tasks("train"), "eval": environment.tasks("eval") if task.evaluation else ()}
    for split in ("train", "eval") if task.evaluation else ("train",):
        if not len(splits[split]):
            raise TaskFileError(f"The environment {task.environment.class_} has no tasks in its {split} split.")
    return Plan(task, environment, splits["train"], splits["eval"])


def begin_or_go_on(directory: RunDirectory, task: TaskConfig) -> list[str]:
    """Gives a new directory a run, or lets the run in it go on with the task. Returns what is to be said about that.

    Raises TaskFileError for a change that the run can't follow."""
    if directory.state is None:
        directory.begin(task_record(task))
        return []
    if directory.state.model is None:  # it was ended before it had done anything
        directory.update(task=task_record(task))
        return []
    num_trained = directory.ledger.num_trained
    changed = changes(directory.state.task, task, num_trained)
    directory.update(task=task_record(task))
    said = [f"Going on after {num_trained} of {task.training.jobs} jobs ({directory.path})."]
    if changed:
        said.append(f"The task file has changed; from job {num_trained + 1} on: {'; '.join(changed)}")
        _drop_batches_that_lag(directory, task)
    return said


def _drop_batches_that_lag(directory: RunDirectory, task: TaskConfig) -> None:
    """Batches that were rolled out under a looser bound than the task now has, but not posted yet."""
    posted = directory.state.posting.batch if directory.state.posting else -1
    for index in range(directory.ledger.num_trained, task.training.jobs):
        if index == posted or not directory.has_batch(index):
            continue
        lag = directory.state.model.start_version + index - directory.stored_batch(index).oldest_version
        if lag > task.training.max_policy_lag:
            directory.drop_batch(index)


def is_finished(directory: RunDirectory, task: TaskConfig) -> bool:
    """Whether there is nothing left to do."""
    model, ledger = directory.state.model, directory.ledger
    if model is None or ledger.num_trained < task.training.jobs:
        return False
    due = (
        versions_to_evaluate(task.evaluation.every, model.start_version, task.training.jobs) if task.evaluation else ()
    )
    return all(ledger.has("evaluation", version) for version in due)


async def run(plan: Plan, directory: RunDirectory, url: str, key: str, report: Report) -> None:
    """Everything that the run still has to do, against the service at `url`. Raises RunError."""
    task = plan.task
    patience = Patience(task.service.patience_s, say=report.say)
    async with TrainingService(url, key, patience, task.rollouts.timeout_s) as service:
        model = await _register(service, task, directory)
        progress = report.progress
        progress.num_jobs, progress.num_trained = task.training.jobs, directory.ledger.num_trained
        stopwatch = Stopwatch()
        versions = VersionWatch(service, model, progress, stopwatch)
        roller = GroupRoller(plan.environment, patience, report)
        max_shared = task.rollouts.max_shared(task.rollouts.group_size)
        chat = OpenAIChat(service.openai, model.name, max_shared, **_sampling(task))
        stream = TaskStream(plan.train_tasks, task.seed)
        batches = BatchRoller(task, directory, versions, roller, chat, stream, stopwatch, report)
        trainer = Trainer(task, directory, service, versions, batches, stopwatch, report)
        work = [batches.run(directory.ledger.num_trained), trainer.run()]
        if task.evaluation:
            evaluator = Evaluator(task, task.evaluation, directory, service, versions, roller, plan.eval_tasks, report)
            work.append(evaluator.run())
        await _together(work, versions.run())


async def _together(work: list, beside: object) -> None:
    """Runs `work` to its end, and `beside` for as long. The first failure ends all of it, and is the one raised."""
    try:
        async with asyncio.TaskGroup() as everything:
            watching = everything.create_task(beside)
            await asyncio.gather(*(everything.create_task(one) for one in work))
            watching.cancel()
    except BaseExceptionGroup as group:
        raise _first(group) from None


def _first(group: BaseExceptionGroup) -> BaseException:
    """A RunError if there is one: others may only be what it has led to."""
    error: BaseException = group.subgroup(RunError) or group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _sampling(task: TaskConfig) -> dict[str, object]:
    rollouts = task.rollouts
    limit = {} if rollouts.max_tokens is None else {"max_tokens": rollouts.max_tokens}
    return {"temperature": rollouts.temperature, **limit, **rollouts.sampling}


async def _register(service: TrainingService, task: TaskConfig, directory: RunDirectory) -> RegisteredModel:
    """The run's model. Raises ForeignVersionError when it isn't the one that the run began with, or is in use."""
    wanted = task.model
    model = await service.register(wanted.entity, wanted.project, task.model_name, wanted.base_model)
    known = directory.state.model
    if known is None:
        if model.step > 0 and not wanted.go_on:
            raise ForeignVersionError(
                f"{model.name} has {model.step} versions already, and this run has just begun ({directory.path}). Name "
                "another model (model.name, or the run's name), or train this one further with model.go_on: true."
            )
        directory.update(model=RunModel(id=model.id, name=model.name, start_version=model.step))
    elif known.id != model.id:
        raise ForeignVersionError(
            f"{model.name} isn't the model that this run began with ({known.id}, now {model.id}): it is another "
            f"service, or it was deleted. Go on against the service of {directory.path}, or begin anew with another "
            "output.directory."
        )
    elif model.step < known.start_version + directory.ledger.num_trained:
        raise ForeignVersionError(
            f"{model.name} is at version {model.step}, but this run has trained it up to version "
            f"{known.start_version + directory.ledger.num_trained}: versions were deleted, or the service's store is "
            "an older one. Restore it, or begin anew with another output.directory and model.name."
        )
    return model
