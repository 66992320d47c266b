"""One training step from beginning to end, on the CPU in seconds: no Ray, no HTTP, no service.

    python examples/one_step.py [DIRECTORY FOR THE CHECKPOINT]

A service does the same with the trajectory groups of every job that it receives.
"""

import sys

import torch
from pydantic import TypeAdapter
from transformers import AutoTokenizer

from tandem.rl.batch import build_batch
from tandem.rl.checkpoints import write_checkpoint
from tandem.rl.config import TrainingConfig
from tandem.rl.learner import Learner
from tandem.rl.packing import PackedSequence
from tandem.rl.policy import Policy
from tandem.rl.steps import fill_logprobs, gradient_steps
from tandem.rl.tiny.model import resolve_model
from tandem.rl.trajectories import TrajectoryGroup

# Sampled turns are choices as an OpenAI API returns them. Choices of a service also have logprobs and token ids.
GROUPS = """[
  {"trajectories": [
    {"reward": 1, "messages_and_choices": [
      {"role": "user", "content": "Which is the largest: 3, 8 or 5?"},
      {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "The largest is 8."}}]},
    {"reward": 0, "messages_and_choices": [
      {"role": "user", "content": "Which is the largest: 3, 8 or 5?"},
      {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "The largest is 3."}}]}]},
  {"trajectories": [
    {"reward": 1, "messages_and_choices": [
      {"role": "user", "content": "Which is the largest: 12, 4 or 7?"},
      {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "The largest is 12."}}]},
    {"reward": 0, "messages_and_choices": [
      {"role": "user", "content": "Which is the largest: 12, 4 or 7?"},
      {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "The largest is 7."}}]}]}
]"""


def right_answers(rows: list[PackedSequence], scores: list[torch.Tensor]) -> float:
    """Return the mean logprob of the tokens with a positive advantage."""
    return float(torch.cat([score[row.advantages > 0] for row, score in zip(rows, scores, strict=True)]).mean())


def main(directory: str) -> None:
    # The policy: a frozen base model and its trainable LoRA adapter.
    path = resolve_model("builtin:tiny")
    learner = Learner(Policy.load(path, device="cpu"))

    # The batch: rewards are compared within each group, and all sequences are packed into rows.
    groups = TypeAdapter(list[TrajectoryGroup]).validate_json(GROUPS)
    config = TrainingConfig(allow_training_without_logprobs=True, precalculate_logprobs=True)
    batch = build_batch(groups, AutoTokenizer.from_pretrained(path), config, max_model_len=2048)
    print(f"batch: {batch.num_trajectories} trajectories, {batch.num_trained_tokens} trained tokens")

    # The step: the importance ratios start from the policy's own logprobs, because these choices have none.
    rows = fill_logprobs(batch.sequences, config, lambda _, rows: learner.score(rows), policy=0)
    for metrics in gradient_steps(learner, rows, config, learning_rate=1e-2, version=0):
        print(f"step: loss {metrics['loss/train']:.4f}, gradient norm {metrics['loss/grad_norm']:.4f}")
    before = right_answers(rows, [row.old_logprobs for row in rows if row.old_logprobs is not None])
    after = right_answers(rows, learner.score(rows))
    print(f"mean logprob of the right answers: {before:.3f} before, {after:.3f} after")

    # The checkpoint: adapter and optimizer state, in a directory that is named after their digest.
    adapter_config = learner.policy.adapter_config()
    checkpoint = write_checkpoint(directory, learner.state(), adapter_config, {"base_model": path, "step": 1})
    print(f"checkpoint: {checkpoint.path}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "checkpoints")
