"""A program for .venv-clients: episodes with a tool over two protocols, recorded by openpipe-art's capture.

It prints, for each episode, what the capture kept of each answer, read with the package's own functions.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import anthropic
import art
import openai
from art.trajectories._tokenize import _messages_tokens, _response_generations

URL, KEY, MODEL, TOOL = *sys.argv[1:4], json.loads(sys.argv[4])
QUESTION: dict[str, Any] = {"role": "user", "content": "What is 3 plus 4?"}


def responses(is_stream: bool) -> list[dict[str, Any]]:
    client = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY, max_retries=0)
    items: list[Any] = [QUESTION]
    tools: Any = [{"type": "function", **TOOL}]
    options: dict[str, Any] = {"model": MODEL, "tools": tools, "temperature": 0, "max_output_tokens": 48}
    with art.Trajectory() as trajectory:
        for _ in range(2):
            if is_stream:
                with client.responses.stream(input=items, **options) as stream:
                    response: Any = stream.get_final_response()
            else:
                response = client.responses.create(input=items, **options)
            items += response.output
            for item in response.output:
                if item.type == "function_call":
                    items.append({"type": "function_call_output", "call_id": item.call_id, "output": "7"})
    kept = []
    for exchange in trajectory.exchanges.responses:
        (generation,) = _response_generations(exchange.response)
        (extra,) = exchange.response.model_extra["token_generations"]
        kept.append(
            {
                "prompt": generation.prompt_token_ids,
                "tokens": generation.output_token_ids,
                "logprobs": generation.output_logprobs,
                "items": generation.output_indices,
                "version": extra["policy_version"],
                "sampled_with": extra["sampled_with"],
                "model": exchange.response.model,
                "text": exchange.response.output_text,
            }
        )
    return kept


def messages(is_stream: bool) -> list[dict[str, Any]]:
    client = anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0)
    turns: list[Any] = [QUESTION]
    tool: Any = {"name": TOOL["name"], "description": TOOL["description"], "input_schema": TOOL["parameters"]}
    options: dict[str, Any] = {"model": MODEL, "tools": [tool], "temperature": 0, "max_tokens": 48}
    with art.Trajectory() as trajectory:
        for _ in range(2):
            if is_stream:
                with client.messages.stream(messages=turns, **options) as stream:
                    message: Any = stream.get_final_message()
            else:
                message = client.messages.create(messages=turns, **options)
            turns.append({"role": "assistant", "content": message.content})
            calls = [block for block in message.content if block.type == "tool_use"]
            results = [{"type": "tool_result", "tool_use_id": call.id, "content": "7"} for call in calls]
            turns.append({"role": "user", "content": results})
    kept = []
    for exchange in trajectory.exchanges.messages:
        prompt, tokens, logprobs = _messages_tokens(exchange.response)
        extra = exchange.response.model_extra
        kept.append(
            {
                "prompt": prompt,
                "tokens": tokens,
                "logprobs": logprobs,
                "items": list(range(len(exchange.response.content))),
                "version": extra["policy_version"],
                "sampled_with": extra["sampled_with"],
                "model": exchange.response.model,
                "text": "".join(block.text for block in exchange.response.content if block.type == "text"),
            }
        )
    return kept


episodes = {
    f"{run.__name__}{' stream' * is_stream}": run(is_stream)
    for run in (responses, messages)
    for is_stream in (False, True)
}
print(json.dumps(episodes))
