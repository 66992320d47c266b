"""Environments of the verifiers library, with its own rollouts, tools and rubrics.

https://github.com/primeintellect-ai/verifiers, version 0.4 (`verifiers.v1`). An environment there is a taskset, the
agents that play it with their programs (harnesses), and rewards. All of that stays as it is: its calls of the model go
to the service and are captured, so the trajectory is exact. `pip install 'tandem-rl[verifiers]'`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tandem.rl.environments.base import Environment, ServiceChat, Split
from tandem.rl.environments.loading import imported
from tandem.rl.trajectories import Trajectory

if TYPE_CHECKING:
    from verifiers.v1 import Env, Episode, Task, Trace

SESSION_HEADER = "x-session-id"
"""The library sends a trace's id in it with each of the trace's calls."""
KEY_VARIABLE = "TANDEM_KEY_OF_THE_RUN"
"""A name for the configuration alone; the key is given to the client itself."""


@dataclass(frozen=True)
class VerifiersTask:
    """A task of the library, and the split whose environment plays it."""

    split: Split
    task: Task[Any, Any, Any]


class VerifiersError(RuntimeError):
    """An episode that failed, or that can't be one trajectory."""


class Verifiers(Environment[VerifiersTask]):
    """A verifiers environment. A task file names it `verifiers:NAME`.

    Args:
        name: the id of an installed taskset, or `package.module:function` or `path/to/file.py:function` of a function
            that returns a verifiers `Env`.
        env: the library's settings of the environment (its `--env.*`), like
            {"agent": {"harness": {"id": "null"}, "runtime": {"type": "subprocess"}, "max_turns": 4}}; for a function,
            its keyword arguments.
        eval_env: settings that differ for the eval split, like {"taskset": {"split": "test"}}. Default: eval tasks are
            held out from the same taskset.
        size: number of train tasks, from the start of the taskset; needed for an infinite one. Default: all.
        eval_size: number of eval tasks; no train task has the same content.
        sampling: overrides the run's sampling options.
        base_dir: base of a relative path.

    The reward is the sum of the task's weighted rewards. Metrics: `reward/NAME` for each reward, and the environment's
    own. An episode that ends with an error is left out of its group.
    """

    def __init__(
        self,
        name: str,
        env: Mapping[str, Any] | None = None,
        eval_env: Mapping[str, Any] | None = None,
        size: int | None = None,
        eval_size: int = 64,
        sampling: Mapping[str, Any] | None = None,
        base_dir: str = ".",
    ) -> None:
        self.sampling = dict(sampling or {})
        settings = {"train": dict(env or {}), "eval": _merged(env or {}, eval_env or {})}
        made = {"train": _environment(name, settings["train"], base_dir)}
        made["eval"] = _environment(name, settings["eval"], base_dir) if eval_env else made["train"]
        self._envs: dict[str, Env[Any]] = made
        self._tasks = self._split(size, eval_size)
        self._rollouts: dict[str, Any] = {}  # captured, by the id of their trace
        self._is_open = False
        self._http: Any = None

    def tasks(self, split: Split) -> Sequence[VerifiersTask]:
        return self._tasks[split]

    def _split(self, size: int | None, eval_size: int) -> dict[str, list[VerifiersTask]]:
        train, held_out = self._envs["train"].taskset, self._envs["eval"].taskset
        if size is None and not train.bounded:
            raise ValueError("This taskset is infinite: set size, the number of train tasks.")
        evaluated = [*held_out.take(eval_size)]
        known = {_content(task) for task in evaluated}
        offered = train if size is None else train.take(size + eval_size)
        trained = [task for task in offered if _content(task) not in known][:size]
        return {
            "train": [VerifiersTask("train", task) for task in trained],
            "eval": [VerifiersTask("eval", task) for task in evaluated],
        }

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            for env in {id(env): env for env in self._envs.values()}.values():
                await stack.enter_async_context(env.serving())
            self._is_open = True
            try:
                yield
            finally:
                self._is_open = False

    async def rollout(self, chat: ServiceChat, task: VerifiersTask) -> Trajectory:
        if not (isinstance(chat, ServiceChat) and self._is_open):
            raise VerifiersError("Rollouts need a chat of a service, inside `async with environment.opened()`.")
        vf, minted = _library(), dict[str, Any]()

        def begin(trace: Trace) -> None:
            minted[trace.id] = self._rollouts[trace.id] = chat.new_rollout()

        sampling = vf.SamplingConfig(**{**chat.rollout_sampling(), **self.sampling})
        context = vf.ModelContext(model=chat.model, client=self._client(chat), sampling=sampling)
        try:
            episode = await self._envs[task.split].run_episode(task.task, context, on_trace=begin)
        finally:
            for trace in minted:
                del self._rollouts[trace]
        return _trajectory(episode, minted)

    def _client(self, chat: ServiceChat) -> Any:
        """Return the configuration of the library's client, and have its servers use the chat's own HTTP client.

        So calls are captured, and retried as the run retries.
        """
        vf = _library()
        config = vf.EvalClientConfig(base_url=str(chat.client.base_url), api_key_var=KEY_VARIABLE)
        if self._http is None:
            self._http = chat.recorded_http(lambda request: self._rollouts.get(request.headers.get(SESSION_HEADER)))
        for env in self._envs.values():
            server: Any = env._interception
            server.clients.setdefault(config.model_dump_json(), _client_of(config, self._http, chat.client.api_key))
        return config


def _client_of(config: Any, http: Any, key: str) -> Any:
    """Return the library's client of an endpoint with another HTTP client, which it must not close."""
    vf = _library()

    class SharedClient(vf.clients.EvalClient):  # type: ignore[misc, name-defined]  # the library is optional
        def __init__(self) -> None:
            self.base_url, self.api_key, self.client = config.base_url, key, http
            self.headers: dict[str, str] = {}

        async def close(self) -> None:
            """Leave the HTTP client to the run."""

    return SharedClient()


def _trajectory(episode: Episode[Any, Any, Any], rollouts: Mapping[str, Any]) -> Trajectory:
    """Return the trajectory of an episode's only trainable trace. Raise VerifiersError."""
    if not episode.ok:
        errors = [*episode.errors, *(error for trace in episode.traces for error in trace.errors)]
        cause = f"{errors[-1].type}: {errors[-1].message}" if errors else "no reason was given"
        raise VerifiersError(f"The episode failed: {cause}")
    trained = [trace for trace in episode.traces if trace.agent.trainable and trace.id in rollouts]
    if len(trained) != 1:
        names = ", ".join(trace.agent.name for trace in trained) or "none"
        raise VerifiersError(
            f"The episode has {len(trained)} traces to train ({names}), but a trajectory has one reward. Pin the model "
            "of the other agents, or mark them in Env.setup: agents.NAME.trainable = False."
        )
    [trace] = trained
    rollout = rollouts[trace.id]
    rewards = {f"reward/{name}": reward.score for name, reward in trace.rewards.items() if reward is not None}
    metrics = {name: value for name, value in trace.metrics.items() if value is not None}
    metadata = {"task": trace.task.key, "stop_condition": trace.stop_condition}
    return Trajectory.model_validate(
        {
            **rollout.trajectory(),
            "reward": trace.reward,
            "metrics": {**metrics, **rewards, "truncated": trace.is_truncated},
            "metadata": metadata,
        }
    )


def _environment(name: str, settings: Mapping[str, Any], base_dir: str) -> Env[Any]:
    """Return a new environment of the library. Raises ValueError that names the fault."""
    vf = _library()
    if ":" in name:
        made = imported(name, base_dir, "function")(**settings)
        if not isinstance(made, vf.Env):
            raise ValueError(f"{name} returned {type(made).__name__}; it must return a verifiers.v1.Env.")
    else:
        taskset = {**settings.get("taskset", {}), "id": name}
        try:
            made = vf.load_environment(vf.resolve_env_config({**settings, "taskset": taskset}))
        except ModuleNotFoundError as error:
            raise ValueError(
                f"{error} Install the package of the taskset, or name a function: verifiers:package.module:function."
            ) from error
    env: Env[Any] = made
    if "interception" in env.config.model_fields_set and env.config.interception.type != "server":
        raise ValueError(
            f"interception.type is {env.config.interception.type!r}, but calls are captured at one server: set it to "
            "'server', or leave it out."
        )
    if env.config.interception.type != "server":
        env.config = env.config.model_copy(update={"interception": vf.interception.InterceptionServerConfig()})
    return env


def _merged(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with changes, section by section."""
    merged = dict(settings)
    for name, value in changes.items():
        before = merged.get(name)
        merged[name] = _merged(before, value) if isinstance(before, Mapping) and isinstance(value, Mapping) else value
    return merged


def _content(task: Task[Any, Any, Any]) -> str:
    return json.dumps(task.data.model_dump(mode="json", exclude={"idx"}), sort_keys=True)


def _library() -> ModuleType:
    try:
        import verifiers.v1 as vf
    except ModuleNotFoundError as error:
        raise ValueError(
            f"verifiers isn't installed completely ({error.name} is missing). Install it where rollouts run: "
            "pip install 'tandem-rl[verifiers]'"
        ) from error
    library: ModuleType = vf
    return library
