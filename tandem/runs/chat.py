"""What rollouts act with: the service's chat completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from openai import AsyncOpenAI

from tandem.rl.environments.base import Message, Tool, request_messages


class OpenAIChat:
    """`tandem.rl.environments.base.Chat` over an OpenAI client.

    Agent code that wants a client of its own takes `chat.client` and `chat.model`; choices that it puts into the
    trajectory as `choice.model_dump()` are as good as those that `chat(...)` returns.
    """

    def __init__(self, client: AsyncOpenAI, model: str, **sampling: Any):
        """`sampling`: fields of every request; those that the OpenAI client doesn't know are sent as they are."""
        self.client, self.model, self.sampling = client, model, sampling

    async def __call__(
        self, messages: Sequence[Message], *, tools: Sequence[Tool] | None = None, **sampling: Any
    ) -> dict[str, Any]:
        body = {**self.sampling, **sampling}
        if tools:
            body["tools"] = list(tools)
        completion = await self.client.chat.completions.create(
            model=self.model, messages=request_messages(messages), extra_body=body
        )
        return completion.choices[0].model_dump()
