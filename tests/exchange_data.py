"""Builders of exchanges, as openpipe-art 0.5.23 captures them: token t of an answer has logprob -(t + 1) / 8."""

from __future__ import annotations

from typing import Any

from wire_data import EOS, encode

from tandem.rl.trajectories import Trajectory, TrajectoryGroup

POLICY = "team/project/agent"
SECONDS = "2026-11-30T12:00:{:02}Z"


def prompt(text: str) -> list[int]:
    """Return the prompt of a conversation that begins with a user's message."""
    return encode(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")


def sampled(text: str) -> list[int]:
    return [*encode(text), EOS]


def next_turn(so_far: list[int], text: str) -> list[int]:
    """Return the prompt of a turn that continues prompt and answer `so_far`."""
    return [*so_far, *encode(f"\n<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")]


def logprobs(ids: list[int]) -> list[float]:
    return [-(t + 1) / 8 for t in range(len(ids))]


def exchange(
    second: int, request: dict[str, Any], response: dict[str, Any], model: str | None = POLICY, end: int | None = None
) -> dict[str, Any]:
    asked = request if model is None else {"model": model, **request}
    ends = SECONDS.format(second + 1 if end is None else end)
    return {"start_time": SECONDS.format(second), "end_time": ends, "request": asked, "response": response}


def chat_choice(ids: list[int], index: int = 0, **extra: Any) -> dict[str, Any]:
    entries = [{"token": "x", "logprob": one, "top_logprobs": [], "bytes": None} for one in logprobs(ids)]
    return {
        "finish_reason": "stop",
        "index": index,
        "logprobs": {"content": entries, "refusal": None},
        "message": {"role": "assistant", "content": "as sampled"},
        "token_ids": ids,
        "policy_version": 3,
        "sampled_with": {},
        **extra,
    }


def chat(
    second: int, context: list[int], *answers: list[int], model: str | None = POLICY, **request: Any
) -> dict[str, Any]:
    """Return an exchange of chat completions with one choice for each answer."""
    choices = [chat_choice(ids, number, prompt_token_ids=context) for number, ids in enumerate(answers)]
    body = {"messages": [{"role": "user", "content": "as sent"}], **request}
    return exchange(second, body, {"id": "c", "object": "chat.completion", "model": "m", "choices": choices}, model)


def completion(second: int, context: list[int], *answers: list[int], **request: Any) -> dict[str, Any]:
    choices = [
        {
            "index": number,
            "text": "as sampled",
            "finish_reason": "stop",
            "logprobs": {"tokens": ["x"] * len(ids), "token_logprobs": logprobs(ids), "text_offset": [0] * len(ids)},
            "token_ids": ids,
            "prompt_token_ids": context,
            "policy_version": 3,
            "sampled_with": {},
        }
        for number, ids in enumerate(answers)
    ]
    return exchange(second, {"prompt": "as sent", **request}, {"model": "m", "choices": choices})


def generation(context: list[int], ids: list[int], *output_indices: int) -> dict[str, Any]:
    tokens = [{"token_id": id_, "logprob": one} for id_, one in zip(ids, logprobs(ids), strict=True)]
    made = {"prompt_token_ids": context, "output_indices": list(output_indices), "output_tokens": tokens}
    return {**made, "policy_version": 3, "sampled_with": {}}


MESSAGE, CALL, RESULT = {"type": "message"}, {"type": "function_call"}, {"type": "function_call_output"}


def response(
    second: int, generations: list[dict[str, Any]], output: list[dict[str, Any]] | None = None, **request: Any
) -> dict[str, Any]:
    answer = {"model": "m", "output": output or [MESSAGE], "token_generations": generations, "policy_version": 3}
    return exchange(second, {"input": "as sent", **request}, answer)


def message(second: int, context: list[int], ids: list[int], **request: Any) -> dict[str, Any]:
    answer = {
        "model": "m",
        "content": [{"type": "text", "text": "as sampled"}],
        "prompt_token_ids": context,
        "token_ids": ids,
        "logprobs": logprobs(ids),
        "policy_version": 3,
        "sampled_with": {},
    }
    return exchange(second, {"messages": [], "max_tokens": 8, **request}, answer)


def captured(reward: float = 1.0, **exchanges: list[dict[str, Any]]) -> Trajectory:
    """Return a trajectory of exchanges that knows its policy."""
    trajectory = Trajectory.model_validate({"exchanges": exchanges, "reward": reward})
    assert trajectory.exchanges is not None
    trajectory.exchanges.of_policy(POLICY)
    return trajectory


def captured_group(*trajectories: Trajectory) -> TrajectoryGroup:
    return TrajectoryGroup(trajectories=list(trajectories))
