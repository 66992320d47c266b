"""A taskset of the verifiers library with tools, several turns and a rubric, and a program that plays it."""

from __future__ import annotations

import json

import openai
import verifiers.v1 as vf

__all__ = ["SumHarness", "SumTaskset"]

TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Add two numbers.",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "required": ["a", "b"],
        },
    },
}


class SumData(vf.TaskData):
    a: int
    b: int


class SumTask(vf.Task[SumData]):
    @vf.reward(weight=0.5)
    async def calculated(self, trace: vf.Trace) -> float:
        return float(any(str(self.data.a + self.data.b) == message.content for message in trace.tool_messages))

    @vf.reward
    async def answered(self, trace: vf.Trace) -> float:
        return float(bool(trace.last_reply))

    @vf.metric
    async def turns(self, trace: vf.Trace) -> float:
        return float(trace.num_turns)


class SumConfig(vf.TasksetConfig):
    first: int = 1
    num: int = 9


class SumTaskset(vf.Taskset[SumTask, SumConfig]):
    def load(self):
        for a in range(self.config.first, self.config.first + self.config.num):
            for b in range(1, 10):
                yield SumTask(SumData(a=a, b=b, prompt=f"What is {a} plus {b}?"), self.config.task)


class SumHarness(vf.Harness[vf.HarnessConfig]):
    """A chat loop with one tool, in this process."""

    NEEDS_CONTAINER = False
    EXECUTES_CODE = False

    async def launch(self, ctx, trace, runtime, endpoint, secret, mcp_urls, data):
        messages = [{"role": "user", "content": data.prompt}]
        async with openai.AsyncOpenAI(base_url=endpoint, api_key=secret, max_retries=0) as client:
            for _ in range(3):
                completion = await client.chat.completions.create(model=ctx.model, messages=messages, tools=[TOOL])
                message = completion.choices[0].message
                messages.append(message.model_dump(exclude_none=True))
                for call in message.tool_calls or ():
                    content = _result(call.function.arguments)
                    messages.append({"role": "tool", "tool_call_id": call.id, "content": content})
                if not message.tool_calls:
                    break
        return vf.ProgramResult(0, "", "")


def _result(arguments: str) -> str:
    try:
        given = json.loads(arguments)
        return str(int(given["a"]) + int(given["b"]))
    except (ValueError, TypeError, KeyError) as error:
        return f"Error: {error}"


def environment(num: int = 9, agents: int = 1) -> vf.Env:
    """Return an environment, as a function that a task file names does."""
    config = {"taskset": {"id": "sum_taskset", "num": num}, "agent": {"runtime": {"type": "subprocess"}}}
    if agents == 2:
        return TwoAgents(TwoAgentsConfig.model_validate({**config, "other": config["agent"]}))
    return vf.load_environment(vf.resolve_env_config(config))


class TwoAgentsConfig(vf.SingleAgentEnvConfig):
    other: vf.AgentConfig = vf.AgentConfig()


class TwoAgents(vf.Env[TwoAgentsConfig]):
    async def run(self, task, agents):
        await agents.agent.run(task)
        await agents.other.run(task)
