"""The rollout of a graded task: one answer to the messages of a row, and its grade as the reward."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tandem.rl.environments.base import Chat
from tandem.rl.graders.grading import Grading
from tandem.rl.graders.sample import Sample
from tandem.rl.trajectories import Trajectory


async def graded_rollout(chat: Chat, row: Mapping[str, Any], grading: Grading, **sampling: Any) -> Trajectory:
    """Return the trajectory of one answer to `row`, which has `messages`, perhaps `tools`, and what the grader needs.

    Raise GraderError for an answer that can't be graded.
    """
    messages = [{name: value for name, value in message.items() if name != "weight"} for message in row["messages"]]
    tools = row.get("tools") or None
    choice = await chat(messages, tools=tools, **sampling)
    grade = await grading(row, Sample.of_choice(choice))
    metrics = {f"grade/{name}": reward for name, reward in grade.sub_rewards.items()}
    return Trajectory(messages_and_choices=[*messages, choice], tools=tools, reward=grade.reward, metrics=metrics)
