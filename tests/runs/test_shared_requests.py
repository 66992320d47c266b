"""Equal turns requested at the same moment share a request."""

import asyncio
import threading

import openai
import pytest
from scripted_service import ScriptedService, unavailable

from tandem.runs.chat import GATHERING_S, OpenAIChat

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture
def talk(service: ScriptedService):
    """A function that runs an async function, to which it passes a factory of chats."""

    def run(conversation):
        async def main():
            async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key="k", max_retries=0) as client:
                return await conversation(lambda *args, **sampling: OpenAIChat(client, "e/p/m", *args, **sampling))

        return asyncio.run(main())

    return run


def sizes(service):
    return [body.get("n", 1) for body in service.completion_bodies]


def test_a_group_sends_one_request(service, talk):
    async def conversation(chat):
        chat = chat(8, temperature=1.0)
        return await asyncio.gather(*(chat(HELLO) for _ in range(8)))

    choices = talk(conversation)
    assert sizes(service) == [8]
    assert [choice["index"] for choice in choices] == list(range(8))
    assert all(choice["policy_version"] == 0 and choice["prompt_token_ids"] == [5, 6] for choice in choices)


def test_a_request_takes_no_more_turns_than_it_may(service, talk):
    async def conversation(chat):
        chat = chat(3)
        return await asyncio.gather(*(chat(HELLO) for _ in range(7)))

    assert len(talk(conversation)) == 7
    assert sorted(sizes(service)) == [1, 3, 3]


@pytest.mark.parametrize(
    "differing",
    [
        ([{"messages": HELLO}, {"messages": [{"role": "user", "content": "goodbye"}]}]),
        ([{"messages": HELLO, "max_tokens": 5}, {"messages": HELLO, "max_tokens": 6}]),
        ([{"messages": HELLO}, {"messages": HELLO, "tools": [{"type": "function", "function": {"name": "f"}}]}]),
        ([{"messages": HELLO, "temperature": 0}, {"messages": HELLO, "temperature": 0}]),
        ([{"messages": HELLO, "n": 1}, {"messages": HELLO, "n": 1}]),
    ],
    ids=["words", "sampling", "tools", "greedy", "own n"],
)
def test_turns_that_differ_or_cant_be_shared_have_their_own_requests(service, talk, differing):
    async def conversation(chat):
        chat = chat(2)
        await asyncio.gather(*(chat(**asked) for asked in differing))

    talk(conversation)
    assert sizes(service) == [1, 1]


def test_a_later_turn_has_its_own_request(service, talk):
    async def conversation(chat):
        chat = chat(2)
        first = asyncio.create_task(chat(HELLO))
        while not service.completions:
            await asyncio.sleep(GATHERING_S)
        await asyncio.gather(first, chat(HELLO))

    talk(conversation)
    assert sizes(service) == [1, 1]


@pytest.mark.parametrize("after_s", [0, GATHERING_S / 2, 20 * GATHERING_S])
def test_cancelling_a_rollout_leaves_the_others(service, talk, after_s):
    is_cancelled = threading.Event()
    service.holds_completion = lambda model, version: not is_cancelled.is_set()

    async def conversation(chat):
        chat = chat(4)
        tasks = [asyncio.create_task(chat(HELLO)) for _ in range(3)]
        await asyncio.sleep(after_s)
        tasks[0].cancel()
        is_cancelled.set()
        return await asyncio.gather(*tasks, return_exceptions=True)

    cancelled, *others = talk(conversation)
    assert isinstance(cancelled, asyncio.CancelledError)
    assert len({choice["index"] for choice in others}) == 2


@pytest.mark.parametrize("after_s", [0, GATHERING_S / 2, 20 * GATHERING_S])
def test_a_request_without_waiters_is_cancelled_and_the_next_is_new(service, talk, after_s):
    service.completion_s, service.is_constant = 60, True

    async def conversation(chat):
        chat = chat(4)
        tasks = [asyncio.create_task(chat(HELLO)) for _ in range(3)]
        await asyncio.sleep(after_s)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        if under_way := asyncio.all_tasks() - {asyncio.current_task()}:
            _, pending = await asyncio.wait(under_way, timeout=60)
            assert not pending
        service.completion_s = 0
        return await chat(HELLO)

    assert talk(conversation)["index"] == 0
    assert sizes(service)[-1] == 1


def test_a_rejection_reaches_all_waiters(service, talk):
    service.intercept = lambda request: unavailable(status=400)

    async def conversation(chat):
        chat = chat(3)
        return await asyncio.gather(*(chat(HELLO) for _ in range(3)), return_exceptions=True)

    assert [type(error) for error in talk(conversation)] == 3 * [openai.BadRequestError]


@pytest.mark.parametrize("share, requests_per_group", [(True, 1), (False, 2)])
def test_a_run_sends_one_request_per_group(service, task_file, do_run, share, requests_per_group):
    do_run(task_file(training={"jobs": 3, "max_policy_lag": 1}, rollouts={"share_requests": share}))
    assert len(service.completions) == 3 * 2 * requests_per_group
    assert all(len(group["trajectories"]) == 2 for job in service.jobs for group in job.body["trajectory_groups"])
