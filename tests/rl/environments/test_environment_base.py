import asyncio
import json
import subprocess
import sys

import pytest
from scripted_chat import ScriptedChat, call, turn

from tandem.rl.environments.base import SingleTurnEnvironment, request_messages
from tandem.rl.trajectories import Choice


class Echo(SingleTurnEnvironment[str]):
    def tasks(self, split):
        return ["hello", "bye"]

    def messages(self, task):
        return [{"role": "user", "content": task}]

    def reward(self, task, answer):
        return float(answer == task)

    def metrics(self, task, answer):
        return {"length": len(answer or "")}


class Judged(Echo):
    async def reward(self, task, answer):
        await asyncio.sleep(0)
        return 0.25


def test_a_single_turn_is_the_prompt_the_choice_as_it_came_and_the_reward() -> None:
    chat = ScriptedChat("hello")
    trajectory = asyncio.run(Echo(system_prompt="Repeat.", sampling={"max_tokens": 5}).rollout(chat, "hello"))
    prompt = [{"role": "system", "content": "Repeat."}, {"role": "user", "content": "hello"}]
    assert chat.asked == [prompt] and chat.sampling == {"max_tokens": 5} and chat.tools is None
    *messages, choice = trajectory.messages_and_choices
    assert messages == prompt
    assert isinstance(choice, Choice)
    assert (choice.token_ids, choice.prompt_token_ids, choice.policy_version) == ([7], [1, 2, 3], 3)
    assert choice.token_logprobs[0]["logprob"] == -0.5
    assert trajectory.reward == 1.0 and trajectory.metrics == {"length": 5}


@pytest.mark.parametrize(("answer", "reward"), [("bye", 0.0), (None, 0.0)])
def test_a_wrong_or_missing_answer_is_rewarded_by_the_environment(answer: str | None, reward: float) -> None:
    trajectory = asyncio.run(Echo().rollout(ScriptedChat(answer), "hello"))
    assert trajectory.reward == reward
    assert trajectory.messages_and_choices[0] == {"role": "user", "content": "hello"}


def test_a_reward_may_be_awaited() -> None:
    assert asyncio.run(Judged().rollout(ScriptedChat("x"), "hello")).reward == 0.25


def test_a_request_holds_what_choices_said_without_what_they_left_empty() -> None:
    called = call("add", {"a": 1})
    conversation = [
        {"role": "user", "content": "hi"},
        turn("yes"),
        turn(None, called),
        {"role": "tool", "tool_call_id": "call_0", "content": "1"},
        turn(None),
    ]
    assert request_messages(conversation) == [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes"},
        {"role": "assistant", "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "call_0", "content": "1"},
        {"role": "assistant", "content": ""},
    ]


def test_environments_need_neither_torch_nor_a_client_nor_the_datasets_library() -> None:
    """A machine for rollouts alone may have none of them installed."""
    code = """
import json, sys
import tandem.rl.environments.rollouts, tandem.rl.environments.toy, tandem.rl.environments.loading
import tandem.rl.environments.reasoning_gym
print(json.dumps(sorted(sys.modules)))
"""
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert "tandem.rl.environments.reasoning_gym" in loaded
    assert {"torch", "transformers", "ray", "vllm", "httpx", "openai", "reasoning_gym"}.isdisjoint(loaded)
