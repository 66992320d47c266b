"""An agent of LangGraph, unchanged: a graph of a model and a tool, whose calls a capture records.

`pip install langgraph langchain-openai` where the run is started.
"""

import operator
import re
from collections.abc import Sequence
from typing import Annotated, Any, TypedDict

from langchain_core.messages import AnyMessage
from langchain_core.runnables import Runnable
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.errors import GraphRecursionError
from langgraph.graph import START, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition

from tandem.rl.environments.base import Environment, ServiceChat, Split
from tandem.rl.trajectories import Trajectory

NUMBER = {"type": "integer"}
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {"type": "object", "properties": {"a": NUMBER, "b": NUMBER}, "required": ["a", "b"]},
    },
}
MAX_STEPS = 7
"""Of the graph: three turns of the model, and the tool calls between them."""


class State(TypedDict):
    messages: Annotated[list[AnyMessage], operator.add]


def agent(model: Runnable[Any, AnyMessage], sums: list[int]) -> Any:
    """Return a graph that calls the model, then the tool, then the model again. `sums` receives the tool's results."""

    @tool
    def add(a: Any = None, b: Any = None) -> str:
        """Add two numbers."""
        if type(a) is not int or type(b) is not int:
            return f"Error: add takes two integers a and b, not {a!r} and {b!r}."
        sums.append(a + b)
        return str(a + b)

    async def call(state: State) -> State:
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph = StateGraph(State)
    graph.add_node("model", call)
    graph.add_node("tools", ToolNode([add]))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition)
    graph.add_edge("tools", "model")
    return graph.compile()


class LangGraphSums(Environment[tuple[int, int]]):
    """Add two numbers with a tool. The reward is 0.5 for the right call, and 0.5 more if the answer ends in the sum."""

    def tasks(self, split: Split) -> Sequence[tuple[int, int]]:
        pairs = [(a, b) for a in range(1, 10) for b in range(1, 10)]
        return [pair for place, pair in enumerate(pairs) if (place % 5 == 0) == (split == "eval")]

    async def rollout(self, chat: ServiceChat, task: tuple[int, int]) -> Trajectory:
        a, b = task
        sums: list[int] = []
        model = ChatOpenAI(
            model=chat.model,
            base_url=str(chat.client.base_url),
            api_key=chat.client.api_key,
            http_async_client=chat.http,  # it retries while the service is unavailable
            max_retries=0,
            extra_body=chat.rollout_sampling(),
        )
        with chat.capture() as rollout:
            try:
                question = {"messages": [("user", f"What is {a} plus {b}?")]}
                ended = await agent(model.bind_tools([ADD]), sums).ainvoke(question, {"recursion_limit": MAX_STEPS})
                answer = str(ended["messages"][-1].content)
            except GraphRecursionError:  # it called the tool again and again
                answer = ""
        numbers = re.findall(r"\d+", answer)
        calculated, correct = a + b in sums, bool(numbers) and int(numbers[-1]) == a + b
        return Trajectory.model_validate(
            {
                **rollout.trajectory(),
                "reward": 0.5 * calculated + 0.5 * (calculated and correct),
                "metrics": {"calculated": calculated, "correct": correct, "tool_calls": len(sums)},
            }
        )
