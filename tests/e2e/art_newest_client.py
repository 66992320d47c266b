"""A program for .venv-clients: the newest openpipe-art against the whole service, its agents recorded off the wire.

Each way to sample trains one version: chat, whole and streamed, with tools; completions; Responses; Messages. It
prints what came of each job as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import anthropic
import art
import openai

URL, KEY, TOOL = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
QUESTIONS = ("What is 3 plus 4?", "What is 2 plus 6?")
Sample = Callable[[Any, str, str], Awaitable[None]]
JUDGE = "tandem/tiny"


async def chat(model: Any, name: str, question: str) -> None:
    """A tool loop with the client's own OpenAI client, which asks for token ids, `nvext` and `preserve_thinking`."""
    messages: list[Any] = [{"role": "user", "content": question}]
    for _ in range(2):
        completion = await model.openai_client().chat.completions.create(
            model=name, messages=messages, tools=[TOOL], max_tokens=48
        )
        message = completion.choices[0].message
        messages.append(message.model_dump(exclude_none=True))
        for call in message.tool_calls or ():
            messages.append({"role": "tool", "tool_call_id": call.id, "content": "7"})


async def streamed_chat(model: Any, name: str, question: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0) as client:
        messages: list[Any] = [{"role": "user", "content": question}]
        options: Any = {"model": name, "n": 2, "max_tokens": 16, "temperature": 0.9, "stream": True}
        async for _ in await client.chat.completions.create(messages=messages, **options):
            pass
        judged = await client.chat.completions.create(model=JUDGE, messages=messages, max_tokens=4)  # doesn't train
        assert judged.choices


async def completions(model: Any, name: str, question: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0) as client:
        first = await client.completions.create(model=name, prompt=question, max_tokens=8)
        ids = first.choices[0].model_extra
        prompt = [*ids["prompt_token_ids"], *ids["token_ids"]]
        async for _ in await client.completions.create(model=name, prompt=prompt, max_tokens=8, stream=True):
            pass


async def responses(model: Any, name: str, question: str) -> None:
    async with openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0) as client:
        items: list[Any] = [{"role": "user", "content": question}]
        options: Any = {"model": name, "tools": [{"type": "function", **TOOL["function"]}], "max_output_tokens": 48}
        for number in range(2):
            if number:
                async with client.responses.stream(input=items, **options) as stream:
                    response = await stream.get_final_response()
            else:
                response = await client.responses.create(input=items, **options)
            items += response.output
            for item in response.output:
                if item.type == "function_call":
                    items.append({"type": "function_call_output", "call_id": item.call_id, "output": "7"})


async def messages(model: Any, name: str, question: str) -> None:
    function = TOOL["function"]
    tool: Any = {"name": function["name"], "input_schema": function["parameters"]}
    async with anthropic.AsyncAnthropic(base_url=URL, api_key=KEY, max_retries=0) as client:
        turns: list[Any] = [{"role": "user", "content": question}]
        for number in range(2):
            options: Any = {"model": name, "messages": turns, "tools": [tool], "max_tokens": 48}
            if number:
                async with client.messages.stream(**options) as stream:
                    answer: Any = await stream.get_final_message()
            else:
                answer = await client.messages.create(**options)
            turns.append({"role": "assistant", "content": answer.content})
            calls = [block for block in answer.content if block.type == "tool_use"]
            results = [{"type": "tool_result", "tool_use_id": call.id, "content": "7"} for call in calls]
            turns.append({"role": "user", "content": results or "Sure?"})


WAYS: list[tuple[Sample, dict[str, Any]]] = [
    (chat, {}),
    (streamed_chat, {"loss_fn": "ppo", "epsilon": 0.2, "epsilon_high": 0.28}),
    (completions, {"importance_sampling_level": "sequence"}),
    (responses, {"advantage_balance": 0.3, "scale_rewards": False}),
    (messages, {"precalculate_logprobs": True}),
]


async def rollout(sample: Sample, model: Any, index: int) -> art.Trajectory:
    name = model.get_inference_name(step=await model.get_step() if index == 0 else None)  # one is pinned
    with art.Trajectory(reward=float(index % 2)) as trajectory:
        await sample(model, name, QUESTIONS[index % 2])
    return trajectory


async def main() -> None:
    backend = art.ServerlessBackend(api_key=KEY, base_url=f"{URL}/v1")
    run_name = f"art-{uuid.uuid4().hex[:8]}"
    model: Any = art.TrainableModel(name="agent", run_name=run_name, project="tests", base_model="tandem/tiny")
    await model.register(backend)
    trained = []
    for sample, options in WAYS:
        rollouts = await asyncio.gather(*(rollout(sample, model, index) for index in range(4)))
        failed = art.TrajectoryGroup([], exceptions=[TimeoutError("too slow")])
        groups = [art.TrajectoryGroup(rollouts), failed]
        result = await backend.train(model, groups, learning_rate=1e-4, **options)
        trained.append({"way": sample.__name__, "step": result.step, "grad_norm": result.metrics["loss/grad_norm"]})
    await backend._client.models.log(model_id=model.id, split="val", trajectory_groups=groups)
    checkpoints = [checkpoint.step async for checkpoint in backend._client.models.checkpoints.list(model_id=model.id)]
    await model.delete_checkpoints(best_checkpoint_metric="train/reward")
    left = [checkpoint.step async for checkpoint in backend._client.models.checkpoints.list(model_id=model.id)]
    print(json.dumps({"model": model.id, "trained": trained, "checkpoints": checkpoints, "left": left}))


asyncio.run(main())
