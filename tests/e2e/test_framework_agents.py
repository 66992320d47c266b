"""Agents of unmodified frameworks, trained over 128 short episodes with a tool: exactly, and to a higher reward."""

import asyncio
import json
import operator
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, TypedDict

import httpx
import pytest
from clients_python import needs_clients, run_client
from helpers import register
from langchain_core.messages import AnyMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.graph import START, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from sum_task import (
    DESCRIPTION,
    GROUP_SIZE,
    GROUPS,
    LEARNING_RATE,
    MAX_TOKENS,
    MAX_TURNS,
    NAME,
    PACKED,
    PARAMETERS,
    QUESTION,
    VERSIONS,
    Calculator,
)

from tandem.client import AsyncClient, Rollout


def check(http, rewards: list[float], model_id: str) -> None:
    """Check that every job of the model trained what was sampled, all of it, and that the reward rose."""
    # Sampling has no seed: a mean of 32 rewards has a standard error of up to 0.08.
    assert max(rewards[1:]) > rewards[0] + 0.1, rewards
    assert fmean(rewards[-2:]) > rewards[0], rewards
    jobs = http.get("/preview/training-jobs", params={"model_id": model_id}).json()["data"]
    assert len(jobs) == VERSIONS
    assert all(set(job["not_trained"]) <= {"mean_reward", "equal_rewards"} for job in jobs), jobs
    versions = http.get(f"/preview/models/{model_id}/checkpoints").json()["data"]
    counts = [version["metrics"] for version in versions if version["step"] > 0]
    assert len(counts) == VERSIONS
    for count in counts:
        assert count["tokens/retokenised"] == count["tokens/untrainable"] == 0
    # A version whose rollouts are all equally good has nothing to teach; its job says so.
    taught = [count["data/step_num_tokens_trained"] > 0 for count in counts]
    assert sum(taught) >= VERSIONS - sum("equal_rewards" in job["not_trained"] for job in jobs), counts
    assert any(taught)


@needs_clients
@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("openai_agents_program.py", ["responses"]),
        pytest.param("openai_agents_program.py", ["chat"], marks=pytest.mark.slow),
        pytest.param("anthropic_program.py", [], marks=pytest.mark.slow),
    ],
)
def test_an_agent_is_trained_with_openpipe_art(service, http, program, arguments):
    output = run_client(Path(__file__).with_name(program), service.url, service.key, *arguments)
    check(http, **json.loads(output.splitlines()[-1]))


class State(TypedDict):
    messages: Annotated[list[AnyMessage], operator.add]


def graph(model: ChatOpenAI, calculator: Calculator) -> Any:
    """Return an agent: the model, a tool, and back."""

    @tool(NAME, description=DESCRIPTION)
    def add(a: Any = None, b: Any = None) -> str:
        return calculator.add({"a": a, "b": b})

    bound = model.bind_tools([{"type": "function", "function": _FUNCTION}])

    async def call(state: State) -> State:
        return {"messages": [await bound.ainvoke(state["messages"])]}

    agent = StateGraph(State)
    agent.add_node("model", call)
    agent.add_node("tools", ToolNode([add]))
    agent.add_edge(START, "model")
    agent.add_conditional_edges("model", tools_condition)
    agent.add_edge("tools", "model")
    return agent.compile()


_FUNCTION = {"name": NAME, "description": DESCRIPTION, "parameters": PARAMETERS}


async def train_langgraph(service, model: dict[str, Any]) -> list[float]:
    # LangChain's own HTTP client outlives the event loop, and its connections don't.
    async with AsyncClient(service.url, service.key) as client, httpx.AsyncClient() as http:
        known = await client.get_model(model["id"])
        chat = ChatOpenAI(
            model=known.name,
            base_url=service.base_url,
            api_key=service.key,
            max_tokens=MAX_TOKENS,
            http_async_client=http,
        )

        async def rollout() -> Rollout:
            calculator = Calculator()
            agent = graph(chat, calculator)
            with client.capture() as rollout:
                ended = await agent.ainvoke({"messages": [("user", QUESTION)]}, {"recursion_limit": 2 * MAX_TURNS + 1})
            rollout.reward = calculator.reward(ended["messages"][-1].content)
            assert rollout.not_recorded == {}
            return rollout

        rewards = []
        for version in range(VERSIONS + 1):
            rollouts = await asyncio.gather(*(rollout() for _ in range(GROUPS * GROUP_SIZE)))
            rewards.append(fmean(one.reward for one in rollouts))
            groups = [{"trajectories": rollouts[start::GROUPS]} for start in range(GROUPS)]
            if version < VERSIONS:
                job = await client.train(known, groups, learning_rate=LEARNING_RATE, packed_sequence_length=PACKED)
                assert (await client.wait(job)).step == version + 1
        return rewards


def test_a_graph_of_langgraph_is_trained_with_the_capture(service, http):
    model = register(http)
    check(http, asyncio.run(train_langgraph(service, model)), model["id"])
