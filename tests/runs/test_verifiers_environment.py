"""Environments of the real verifiers library, rolled out over a stand-in for the service's endpoint."""

import asyncio
import sys
from pathlib import Path

import openai
import pytest
from model_endpoint import Endpoint, error, running

from tandem.rl.environments.loading import EnvironmentLoadingError, load_environment
from tandem.rl.environments.verifiers import VerifiersError
from tandem.runs.chat import OpenAIChat

pytest.importorskip("verifiers.v1")
FILE = str(Path(__file__).with_name("sum_taskset.py"))
LOCAL = {"agent": {"runtime": {"type": "subprocess"}}}


@pytest.fixture(autouse=True)
def scratch(monkeypatch, tmp_path):
    monkeypatch.setattr("verifiers.v1.runtimes.subprocess.CACHE_DIR", tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


@pytest.fixture
def endpoint():
    with running(Endpoint()) as endpoint:
        yield endpoint


def refusal(*arguments):
    with pytest.raises(EnvironmentLoadingError) as raised:
        load_environment(*arguments)
    return str(raised.value)


def roll_out(environment, endpoint, tasks, **sampling):
    """Roll out the tasks at once, and return trajectories or errors."""

    async def run():
        async with openai.AsyncOpenAI(base_url=f"{endpoint.url}/v1", api_key="the-key", max_retries=0) as client:
            chat = OpenAIChat(client, "e/p/agent", **sampling)
            async with environment.opened():
                rollouts = (environment.rollout(chat.of_rollout("g", number), task) for number, task in tasks)
                return await asyncio.gather(*rollouts, return_exceptions=True)

    return asyncio.run(run())


def test_an_installed_taskset_is_split_into_tasks_that_differ():
    environment = load_environment("verifiers:sum_taskset", {"env": LOCAL, "eval_size": 20})
    train, held_out = environment.tasks("train"), environment.tasks("eval")
    assert (len(train), len(held_out)) == (81 - 20, 20)
    prompts = [{task.task.data.prompt for task in tasks} for tasks in (train, held_out)]
    assert prompts[0].isdisjoint(prompts[1])


def test_the_eval_split_may_have_settings_of_its_own():
    changed = {"taskset": {"first": 9, "num": 2}}
    options = {"env": LOCAL, "eval_env": changed, "eval_size": 12, "size": 70}
    environment = load_environment("verifiers:sum_taskset", options)
    train, held_out = environment.tasks("train"), environment.tasks("eval")
    assert {task.task.data.a for task in held_out} == {9, 10} and len(held_out) == 12
    assert len(train) == 70 and not any(task.task.data.a == 9 for task in train[:70] if task in held_out)
    assert {t.task.data.prompt for t in train}.isdisjoint({t.task.data.prompt for t in held_out})


def test_episodes_run_as_the_library_runs_them_and_are_captured(endpoint):
    environment = load_environment(f"verifiers:{FILE}:environment", {"env": {"num": 2}, "eval_size": 2})
    tasks = environment.tasks("train")[:6]
    options = {"temperature": 0.7, "max_tokens": 9, "seed": 5}
    found = roll_out(environment, endpoint, enumerate(tasks), **options)
    for task, trajectory in zip(tasks, found, strict=True):
        exchanges = trajectory.model_dump(mode="json")["exchanges"]["chat_completions"]
        assert len(exchanges) == 3  # the stand-in always calls the tool
        assert all(e["request"]["messages"][0]["content"] == task.task.data.prompt for e in exchanges)
        assert all(e["response"]["choices"][0]["token_ids"] == [7, 8] for e in exchanges)
        assert trajectory.reward == 1.0 and trajectory.metrics["turns"] == 3
        assert (trajectory.metrics["reward/calculated"], trajectory.metrics["reward/answered"]) == (0, 1)
    asked = endpoint.requests[0]
    assert (asked["model"], asked["temperature"], asked["max_tokens"]) == ("e/p/agent", 0.7, 9)
    assert len({request["seed"] for request in endpoint.requests}) == 6


def test_an_episode_that_fails_says_why(endpoint):
    environment = load_environment("verifiers:sum_taskset", {"env": LOCAL})
    endpoint.answers = [error(400)]
    [failed] = roll_out(environment, endpoint, [(0, environment.tasks("train")[0])])
    assert isinstance(failed, VerifiersError) and "400" in str(failed)


def test_an_episode_of_two_trained_agents_is_refused(endpoint):
    environment = load_environment("verifiers:sum_taskset:environment", {"env": {"agents": 2}})
    [failed] = roll_out(environment, endpoint, [(0, environment.tasks("train")[0])])
    assert isinstance(failed, VerifiersError) and "2 traces to train (agent, other)" in str(failed)


def test_rollouts_need_an_opened_environment_and_a_service():
    environment = load_environment("verifiers:sum_taskset", {"env": LOCAL})
    with pytest.raises(VerifiersError, match="opened"):
        asyncio.run(environment.rollout(None, environment.tasks("train")[0]))


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("no_such_taskset", {}, "Install the package of the taskset"),
        ("sum_taskset", {"env": {"agnet": {}}}, "agnet"),
        ("sum_taskset", {"env": {**LOCAL, "interception": {"type": "elastic"}}}, "interception.type is 'elastic'"),
        ("sum_taskset", {"name": "other"}, "takes no option name"),
        ("sum_taskset:nothing", {}, "has no function 'nothing'"),
        ("sum_taskset:_result", {"env": {"arguments": "1"}}, "it must return a verifiers.v1.Env"),
    ],
)
def test_faults_are_named(name, options, said):
    assert said in refusal(f"verifiers:{name}", options)


def test_without_the_library_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "verifiers.v1", None)
    assert "pip install 'tandem-rl[verifiers]'" in refusal("verifiers:sum_taskset", {})
