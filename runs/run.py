"""A whole run, from its task file to its last version."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tandem.client import AsyncClient, Model, TandemError
from tandem.rl.environments.base import Environment, Split
from tandem.rl.environments.loading import EnvironmentLoadingError, load_environment
from tandem.rl.environments.rollouts import TaskStream
from tandem.runs.changes import changes, task_record
from tandem.runs.chat import OpenAIChat
from tandem.runs.config import TaskConfig, load_task
from tandem.runs.directory import RunDirectory, RunModel
from tandem.runs.errors import ForeignVersionError, RequestRefusedError, RunDirectoryError, RunError, TaskFileError
from tandem.runs.evaluating import Evaluator, versions_to_evaluate
from tandem.runs.judging import GroupJudge
from tandem.runs.patience import Patience
from tandem.runs.recording import Recorder
from tandem.runs.reporting.report import Report
from tandem.runs.reporting.stopwatch import Stopwatch
from tandem.runs.rolling import BatchRoller, GroupRoller
from tandem.runs.training import Trainer
from tandem.runs.versions import VersionWatch


@dataclass(frozen=True)
class Plan:
    """A task file with its environment and tasks, before anything is started."""

    task: TaskConfig
    environment: Environment[Any]
    train_tasks: Sequence[object]
    eval_tasks: Sequence[object]


def plan(path: Path) -> Plan:
    """Read a task file and create its environment. Raise TaskFileError."""
    task = load_task(path)
    try:
        environment = load_environment(task.environment.class_, task.environment.options, path.parent)
    except EnvironmentLoadingError as error:
        raise TaskFileError(f"The environment of {path}: {error}") from error
    train_tasks = _tasks(environment, "train", task)
    eval_tasks = _tasks(environment, "eval", task) if task.evaluation else ()
    return Plan(task, environment, train_tasks, eval_tasks)


def _tasks(environment: Environment[Any], split: Split, task: TaskConfig) -> Sequence[object]:
    """Return the tasks of a split, at least one. Raise TaskFileError."""
    name = task.environment.class_
    try:
        tasks = environment.tasks(split)
        if len(tasks):
            return tasks
    except Exception as error:  # user code may raise anything
        raise TaskFileError(
            f"The environment {name} can't give its tasks: tasks({split!r}) must return a sequence, but "
            f"there was {type(error).__name__}: {error}"
        ) from error
    raise TaskFileError(f"The environment {name} has no tasks in its {split} split.")


def begin_or_resume(directory: RunDirectory, task: TaskConfig) -> list[str]:
    """Start a run in a new directory, or resume the directory's run with the task. Return sentences to show.

    Raise TaskFileError for a change that the run can't adopt."""
    state = directory.saved_state
    if state is None:
        directory.begin(task_record(task))
        return []
    if state.model is None:  # it was interrupted before it had done anything
        directory.update(task=task_record(task))
        return []
    num_trained = directory.ledger.num_trained
    changed = changes(state.task, task, num_trained)
    directory.update(task=task_record(task))
    said = [f"Resuming after {num_trained} of {task.training.jobs} jobs ({directory.path})."]
    said += _set_damaged_batches_aside(directory, task)
    if changed:
        said.append(f"The task file has changed; from job {num_trained + 1} on: {'; '.join(changed)}")
        _drop_batches_that_lag(directory, task)
    return said


def _set_damaged_batches_aside(directory: RunDirectory, task: TaskConfig) -> list[str]:
    """Set stored batches aside that can't be read, and return sentences about them."""
    said = []
    for index in range(directory.ledger.num_trained, task.training.jobs):
        if directory.has_batch(index):
            try:
                directory.stored_batch(index)
            except RunDirectoryError as error:
                said.append(f"{error} It was set aside ({directory.set_aside(index)}) and is rolled out again.")
    return said


def _drop_batches_that_lag(directory: RunDirectory, task: TaskConfig) -> None:
    """Drop batches that were rolled out under a looser bound than the task now has and aren't posted yet."""
    posted = directory.state.posting.batch if directory.state.posting else -1
    for index in range(directory.ledger.num_trained, task.training.jobs):
        if index == posted or not directory.has_batch(index):
            continue
        lag = directory.model.start_version + index - directory.stored_batch(index).oldest_version
        if lag > task.training.max_policy_lag:
            directory.drop_batch(index)


def is_finished(directory: RunDirectory, task: TaskConfig) -> bool:
    """Return True if nothing is left to do."""
    model, ledger = directory.state.model, directory.ledger
    if model is None or ledger.num_trained < task.training.jobs:
        return False
    if task.evaluation is None:
        return True
    due = versions_to_evaluate(task.evaluation.every, model.start_version, task.training.jobs)
    return all(ledger.has("evaluation", version) for version in due)


async def run(plan: Plan, directory: RunDirectory, url: str, key: str, report: Report) -> None:
    """Do everything that is left of a run, against the service at `url`. Raise RunError."""
    patience = Patience(plan.task.service.patience_s, say=report.say)
    try:
        headers = {"authorization": f"Bearer {key}"}
        async with (
            AsyncClient(url, key, retries=patience) as client,
            httpx.AsyncClient(base_url=url, headers=headers) as http,
        ):
            model = await _register(client, plan.task, directory)
            async with Recorder(http, model.id, report).running() as recorder:
                await _work(plan, directory, client, model, patience, report, recorder)
    except TandemError as error:
        raise RequestRefusedError(str(error)) from error


async def _work(
    plan: Plan,
    directory: RunDirectory,
    client: AsyncClient,
    model: Model,
    patience: Patience,
    report: Report,
    recorder: Recorder,
) -> None:
    """Roll out, train and evaluate until all is done."""
    task, stopwatch = plan.task, Stopwatch()
    report.progress.num_jobs, report.progress.num_trained = task.training.jobs, directory.ledger.num_trained
    openai = client.openai(timeout=task.rollouts.timeout_s)
    versions = VersionWatch(client, model, report.progress, stopwatch)
    judge = GroupJudge(task.judge, openai) if task.judge else None
    roller = GroupRoller(plan.environment, patience, report, judge)
    chat = OpenAIChat(openai, model.name, task.rollouts.max_shared(task.rollouts.group_size), **_sampling(task))
    stream = TaskStream(plan.train_tasks, task.seed)
    batches = BatchRoller(task, directory, versions, roller, chat, stream, stopwatch, report, recorder)
    trainer = Trainer(task, directory, client, versions, batches, stopwatch, report)
    work = [batches.run(directory.ledger.num_trained), trainer.run()]
    if task.evaluation:
        evaluator = Evaluator(
            task, task.evaluation, directory, openai, versions, roller, plan.eval_tasks, report, recorder
        )
        work.append(evaluator.run())
    async with plan.environment.opened():
        await _together(work, versions.run())


async def _together(work: Sequence[Coroutine[Any, Any, None]], beside: Coroutine[Any, Any, None]) -> None:
    """Run `beside` until all `work` is done. The first failure cancels everything and is raised."""
    try:
        async with asyncio.TaskGroup() as everything:
            watching = everything.create_task(beside)
            await asyncio.gather(*(everything.create_task(one) for one in work))
            watching.cancel()
    except BaseExceptionGroup as group:
        raise _first(group) from None


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return a RunError if there is one, because it may have caused the others."""
    error: BaseException = group.subgroup(RunError) or group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _sampling(task: TaskConfig) -> dict[str, Any]:
    rollouts = task.rollouts
    limit = {} if rollouts.max_tokens is None else {"max_tokens": rollouts.max_tokens}
    return {"temperature": rollouts.temperature, **limit, **rollouts.sampling}


async def _register(client: AsyncClient, task: TaskConfig, directory: RunDirectory) -> Model:
    """Return the run's model. Raise ForeignVersionError if the run didn't start with it, or if it is in use."""
    wanted = task.model
    model = await client.register_model(
        task.model_name, project=wanted.project, base_model=wanted.base_model, entity=wanted.entity
    )
    known = directory.state.model
    if known is None:
        if model.step > 0 and not wanted.go_on:
            raise ForeignVersionError(
                f"{model.name} already has {model.step} versions, and this run is new ({directory.path}). Name another "
                "model (model.name, or the run's name), or continue training this one with model.go_on: true."
            )
        directory.update(model=RunModel(id=model.id, name=model.name, start_version=model.step))
        return model
    trained = known.start_version + directory.ledger.num_trained
    if known.id != model.id:
        raise ForeignVersionError(
            f"{model.name} isn't the model that this run started with (id {known.id}, now {model.id}): this is another "
            f"service, or the model was deleted. Resume against the service of {directory.path}, or start a new run "
            "with another output.directory."
        )
    if model.step < trained:
        raise ForeignVersionError(
            f"{model.name} is at version {model.step}, but this run has trained it up to version {trained}: versions "
            "were deleted, or the service's store was replaced by an older one. Restore it, or start a new run with "
            "another output.directory and model.name."
        )
    return model
