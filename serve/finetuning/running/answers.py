"""The answers of a version, for rollouts and evaluations: requests that outlive a restart of an engine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any

from tandem.cluster.errors import AdapterUnavailableError, EngineDeadError
from tandem.rl.environments.base import Message, Tool, request_messages
from tandem.serve.errors import UnavailableError
from tandem.serve.finetuning.completions import OwnCompletions

RETRY_S = 1.0


class VersionChat:
    """`tandem.rl.environments.base.Chat` with a pinned version. Each answer has a seed of its own.

    The temperature is 1, whatever a base model's generation config says: training compares logprobs at temperature 1.
    """

    def __init__(self, completions: OwnCompletions, model: str, seed: int, patience_s: float):
        """`patience_s` is how long an engine may be away."""
        self._completions, self._model, self._seed, self._patience_s = completions, model, seed, patience_s

    async def __call__(
        self, messages: Sequence[Message], *, tools: Sequence[Tool] | None = None, **sampling: Any
    ) -> dict[str, Any]:
        """Return the choice. Raises what `OwnCompletions` does."""
        body: dict[str, Any] = {"model": self._model, "messages": request_messages(messages), "seed": self._seed}
        body |= {"temperature": 1.0, **sampling}
        if tools:
            body["tools"] = list(tools)
        completion = await self._patiently(body)
        choice: dict[str, Any] = completion["choices"][0]
        return choice

    async def _patiently(self, body: Mapping[str, Any]) -> dict[str, Any]:
        deadline = time.monotonic() + self._patience_s
        while True:
            try:
                return await self._completions(body)
            except (UnavailableError, EngineDeadError, AdapterUnavailableError):
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(RETRY_S)
