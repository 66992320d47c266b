"""Tasks from a file of JSON Lines, whose answers a grader rewards, as in OpenAI's reinforcement fine-tuning.

environment:
  class: tandem.rl.environments.graded:GradedRows
  options:
    train: train.jsonl
    eval: eval.jsonl
    grader: {type: string_check, name: exact, input: "{{sample.output_text}}", reference: "{{item.answer}}",
             operation: eq}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from tandem.rl.environments.base import Chat, Environment, Split
from tandem.rl.graders.errors import GraderError
from tandem.rl.graders.grading import Grading
from tandem.rl.graders.programs import ProgramLimits
from tandem.rl.graders.rollout import graded_rollout
from tandem.rl.graders.spec import Grader
from tandem.rl.trajectories import Trajectory

Row = dict[str, Any]


class GradedRows(Environment[Row]):
    """One answer per row.

    Args:
        train: file of the training tasks: each line an object with `messages`, and fields for the grader's templates.
        eval: file of the evaluation tasks.
        grader: the grader, as in OpenAI's API. Python graders run as this process's user.
        sampling: more fields of each request, like response_format or max_tokens.
    """

    def __init__(
        self, train: str, grader: Mapping[str, Any], eval: str | None = None, sampling: Mapping[str, Any] | None = None
    ) -> None:
        self._files = {"train": train, "eval": eval}
        self._grader: Grader = TypeAdapter(Grader).validate_python(grader)
        self._sampling = dict(sampling or {})

    def tasks(self, split: Split) -> Sequence[Row]:
        name = self._files[split]
        if name is None:
            return []
        rows = [json.loads(line) for line in Path(name).read_text().splitlines() if line.strip()]
        for number, row in enumerate(rows, 1):
            if not isinstance(row, dict) or not row.get("messages"):
                raise ValueError(f"row {number} of {name} has no messages")
        return rows

    async def rollout(self, chat: Chat, task: Row) -> Trajectory:
        return await graded_rollout(chat, task, Grading(self._grader, _judge(chat), ProgramLimits()), **self._sampling)


def _judge(chat: Chat) -> Any:
    """Return the way to ask any model of the service that the rollout's client reaches."""
    client = getattr(chat, "client", None)
    if client is None:
        return None

    async def ask(body: Mapping[str, Any]) -> Mapping[str, Any]:
        try:
            completion = await client.chat.completions.create(**body)
        except Exception as error:  # of whatever client it is
            raise GraderError("model_grader_server_error", f"the judge {body['model']}: {error}") from error
        answer: Mapping[str, Any] = completion.model_dump()
        return answer

    return ask
