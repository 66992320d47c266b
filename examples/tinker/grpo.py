"""GRPO: sample groups of answers, compare each with its group, and train with the loss `cispo`.

    python examples/tinker/grpo.py

The loss gets the sampler's own logprobs, so the service corrects for the difference between sampler and learner.
"""

import argparse
import random
from typing import Any

import tinker
from common import (
    BASE_MODEL,
    MAX_TOKENS,
    Question,
    Tokens,
    accuracy,
    datum,
    decode,
    prompt_tokens,
    questions,
    report,
)
from tinker import types


def run(
    service: tinker.ServiceClient,
    steps: int = 20,
    num_questions: int = 32,
    group_size: int = 8,
    learning_rate: float = 2e-3,
) -> list[float]:
    """Return the mean reward of each step, which samples with the weights that the steps before made."""
    rng = random.Random(0)
    client = service.create_lora_training_client(BASE_MODEL, rank=16, seed=0).result()
    tokenizer = client.get_tokenizer()
    adam = types.AdamParams(learning_rate=learning_rate, grad_clip_norm=1.0)
    mean_rewards: list[float] = []
    for step in range(steps):
        sampler = client.save_weights_and_get_sampling_client().result()
        rewards, batch = roll_out(sampler, tokenizer, questions(rng, num_questions), group_size)
        mean_rewards.append(sum(rewards) / len(rewards))
        if not batch:
            report(step, reward=mean_rewards[-1])
            continue  # every group has equal rewards, so there is nothing to learn
        backward = client.forward_backward(batch, "cispo", {"clip_low_threshold": 0.0, "clip_high_threshold": 4.0})
        optim = client.optim_step(adam)
        backward.result()
        report(step, reward=mean_rewards[-1], grad_norm=(optim.result().metrics or {}).get("grad_norm", float("nan")))
    sampler = client.save_weights_and_get_sampling_client().result()
    held_out = questions(random.Random(1), 64, held_out=True)
    print(f"Accuracy on held-out questions: {accuracy(sampler, tokenizer, held_out):.2f}")
    return mean_rewards


def roll_out(
    sampler: tinker.SamplingClient, tokenizer: Any, asked: list[Question], group_size: int
) -> tuple[list[float], list[types.Datum]]:
    """Return all rewards, and the datums of groups whose rewards differ. All groups are sampled at once."""
    params = types.SamplingParams(max_tokens=MAX_TOKENS, temperature=1.0)
    prompts = [prompt_tokens(tokenizer, question.messages) for question in asked]
    futures = [sampler.sample(types.ModelInput.from_ints(prompt), group_size, params) for prompt in prompts]
    rewards: list[float] = []
    batch: list[types.Datum] = []
    for question, prompt, future in zip(asked, prompts, futures, strict=True):
        sequences_G = future.result().sequences
        rewards_G = [float(decode(tokenizer, sequence.tokens) == question.answer) for sequence in sequences_G]
        rewards += rewards_G
        batch += group_datums(prompt, [(s.tokens, s.logprobs or []) for s in sequences_G], rewards_G)
    return rewards, batch


def group_datums(
    prompt: Tokens, sampled_G: list[tuple[Tokens, list[float]]], rewards_G: list[float]
) -> list[types.Datum]:
    """Return a datum for each sample: its advantage is its reward minus the mean of the group."""
    mean = sum(rewards_G) / len(rewards_G)
    advantages_G = [reward - mean for reward in rewards_G]
    if not any(advantages_G):
        return []
    return [
        datum(prompt, tokens, logprobs=logprobs, advantages=[advantage] * len(tokens))
        for (tokens, logprobs), advantage in zip(sampled_G, advantages_G, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    with tinker.ServiceClient() as service:
        rewards = run(service, parser.parse_args().steps)
    print(f"Mean reward rose from {rewards[0]:.2f} to {rewards[-1]:.2f}.")


if __name__ == "__main__":
    main()
