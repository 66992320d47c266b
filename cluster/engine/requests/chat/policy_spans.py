"""Which policy version sampled which tokens of a choice, as openpipe-art's clients read it.

One version makes a whole answer here, so a choice has one span. openpipe-art's capture of a stream of chat keeps these
spans, but not `policy_version`. It wants both lists together, beside the token ids.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SPANS, PROMPT_SPANS = "policy_token_spans", "prompt_policy_token_spans"


@dataclass(frozen=True)
class PolicySpans:
    """Writes the spans of the choices of one request."""

    generation_id: str
    """Identifies the weights."""
    model: str
    step: int
    _num_prompt: dict[int, int] = field(default_factory=dict)
    _num_sampled: dict[int, int] = field(default_factory=dict)

    def whole(self, choice: dict[str, Any]) -> None:
        """Write the spans of a choice that has its token ids."""
        prompt, sampled = choice.get("prompt_token_ids"), choice.get("token_ids")
        if prompt is not None and sampled is not None:
            self._write(choice, len(prompt), len(sampled))

    def part(self, chunk: dict[str, Any], choice: dict[str, Any]) -> None:
        """Count the tokens of a streamed part of a choice, and write the spans into its last part."""
        index = choice.get("index", 0)
        prompt = choice.get("prompt_token_ids") or chunk.get("prompt_token_ids")
        if prompt is not None:
            self._num_prompt[index] = len(prompt)
        if choice.get("token_ids") is not None:
            self._num_sampled[index] = self._num_sampled.get(index, 0) + len(choice["token_ids"])
        if choice.get("finish_reason") is not None and index in self._num_prompt and index in self._num_sampled:
            self._write(choice, self._num_prompt[index], self._num_sampled[index])

    def _write(self, choice: dict[str, Any], num_prompt: int, num_sampled: int) -> None:
        choice[PROMPT_SPANS] = self._spans(1, num_prompt)  # the first token has no logprob
        choice[SPANS] = self._spans(0, num_sampled)

    def _spans(self, start: int, end: int) -> list[dict[str, Any]]:
        if end <= start:
            return []
        version = {"policy_version": self.step, "lora_slot": self.model, "update_seq": self.step}
        return [{"start_token": start, "end_token": end, "generation_id": self.generation_id, **version}]
