"""A program for .venv-clients: an agent on Anthropic's SDK, trained with openpipe-art's newest client."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import anthropic
from art_training import train_versions
from sum_task import DESCRIPTION, MAX_TOKENS, MAX_TURNS, NAME, PARAMETERS, QUESTION, Calculator

URL, KEY = sys.argv[1:3]
TOOL: Any = {"name": NAME, "description": DESCRIPTION, "input_schema": PARAMETERS}
client = anthropic.AsyncAnthropic(base_url=URL, api_key=KEY, timeout=300)


async def episode(model: str) -> float:
    calculator = Calculator()
    messages: list[Any] = [{"role": "user", "content": QUESTION}]
    for _ in range(MAX_TURNS):
        options = {"model": model, "max_tokens": MAX_TOKENS, "tools": [TOOL]}
        message = await client.messages.create(messages=messages, **options)
        messages.append({"role": "assistant", "content": message.content})
        calls = [block for block in message.content if block.type == "tool_use"]
        if not calls:
            return calculator.reward("".join(block.text for block in message.content if block.type == "text"))
        results = [
            {"type": "tool_result", "tool_use_id": call.id, "content": calculator.add(call.input)} for call in calls
        ]
        messages.append({"role": "user", "content": results})
    return calculator.reward(None)


asyncio.run(train_versions(URL, KEY, episode))
