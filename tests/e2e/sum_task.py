"""The task of the framework agents: say a sum with a tool. Programs of .venv-clients import this module too.

One question for all episodes: few versions can learn it, because only the policy's errors in three numbers are to go.
"""

from __future__ import annotations

import json
import re

A, B = 3, 4
QUESTION = f"What is {A} plus {B}?"
NAME, DESCRIPTION = "add", "Add two numbers."
PARAMETERS = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
    "required": ["a", "b"],
}
"""The tool as the tiny model was taught it."""
MAX_TOKENS, MAX_TURNS = 32, 3
VERSIONS, GROUPS, GROUP_SIZE = 4, 4, 8
"""128 episodes are trained; the last version is measured by 32 more."""
LEARNING_RATE, PACKED = 2e-3, 256


class Calculator:
    """The tool of one episode."""

    def __init__(self) -> None:
        self.sums: list[int] = []

    def add(self, arguments: object) -> str:
        """Return the sum for arguments as JSON or as an object; a sentence for the model if they are wrong."""
        try:
            given = json.loads(arguments) if isinstance(arguments, str) else arguments
            self.sums.append(int(given["a"]) + int(given["b"]))
        except (ValueError, TypeError, KeyError) as error:
            return f"Error: {error}"
        return str(self.sums[-1])

    def reward(self, answer: str | None) -> float:
        """A quarter for the right call, and one for each right number of `3 plus 4 is 7` after it."""
        if A + B not in self.sums:
            return 0.0
        numbers = [int(number) for number in re.findall(r"\d+", answer or "")]
        pairs = zip(numbers, (A, B, A + B), strict=True) if len(numbers) == 3 else ()
        right = sum(said == wanted for said, wanted in pairs)
        return 0.25 + 0.25 * right
