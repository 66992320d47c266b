"""A program for .venv-clients: an agent of the OpenAI Agents SDK, trained with openpipe-art's newest client."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import openai
from agents import (
    Agent,
    FunctionTool,
    ModelBehaviorError,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    set_tracing_disabled,
)
from agents.exceptions import MaxTurnsExceeded
from art_training import train_versions
from sum_task import DESCRIPTION, MAX_TOKENS, MAX_TURNS, NAME, PARAMETERS, QUESTION, Calculator

URL, KEY, API = sys.argv[1:4]
MODEL_OF = {"chat": OpenAIChatCompletionsModel, "responses": OpenAIResponsesModel}
set_tracing_disabled(True)
client = openai.AsyncOpenAI(base_url=f"{URL}/v1", api_key=KEY, timeout=300)


async def episode(model: str) -> float:
    calculator = Calculator()

    async def add(_: Any, arguments: str) -> str:
        return calculator.add(arguments)

    # None instead of False: the tiny model was taught tools without the word `strict`.
    tool = FunctionTool(NAME, DESCRIPTION, PARAMETERS, add, strict_json_schema=None)
    settings = ModelSettings(max_tokens=MAX_TOKENS)
    agent = Agent("Calculator", tools=[tool], model=MODEL_OF[API](model, client), model_settings=settings)
    try:
        result = await Runner.run(agent, QUESTION, max_turns=MAX_TURNS)
    except (MaxTurnsExceeded, ModelBehaviorError):  # it called without end, or a tool that isn't there
        return calculator.reward(None)
    return calculator.reward(str(result.final_output))


asyncio.run(train_versions(URL, KEY, episode))
