"""On-policy distillation: a student samples, and learns the teacher's distribution at every token it sampled.

    python examples/tinker/distillation.py [--teacher tinker://.../sampler_weights/...]

The teacher gives its K likeliest tokens at each position (`topk_prompt_logprobs`). They become targets of shape
[N, K], weighted by the teacher's probabilities. Without `--teacher`, sft.py trains one first.
"""

import argparse
import random
from typing import Any

import sft
import tinker
import torch
from common import BASE_MODEL, MAX_TOKENS, Tokens, accuracy, prompt_tokens, questions, report
from tinker import types

K = 8


def run(
    service: tinker.ServiceClient,
    teacher_path: str,
    steps: int = 16,
    batch_size: int = 32,
    learning_rate: float = 2e-3,
) -> tuple[list[float], float, float]:
    """Return the divergence from the teacher at each step, and the student's accuracy before and after."""
    rng = random.Random(0)
    teacher = service.create_sampling_client(model_path=teacher_path).result()
    client = service.create_lora_training_client(BASE_MODEL, rank=16, seed=1).result()
    tokenizer = client.get_tokenizer()
    held_out = questions(random.Random(1), 64, held_out=True)
    divergences: list[float] = []
    before = 0.0
    for step in range(steps):
        student = client.save_weights_and_get_sampling_client().result()
        if step == 0:
            before = accuracy(student, tokenizer, held_out)
        prompts = [prompt_tokens(tokenizer, question.messages) for question in questions(rng, batch_size)]
        batch, entropy, num_tokens = teach(teacher, prompts, sample(student, prompts))
        backward = client.forward_backward(batch, "cross_entropy")
        optim = client.optim_step(types.AdamParams(learning_rate=learning_rate))
        # Cross-entropy minus the teacher's entropy is the divergence KL(teacher || student) over the K tokens.
        divergences.append((backward.result().metrics["loss:sum"] - entropy) / num_tokens)
        optim.result()
        report(step, divergence=divergences[-1])
    student = client.save_weights_and_get_sampling_client().result()
    return divergences, before, accuracy(student, tokenizer, held_out)


def sample(student: tinker.SamplingClient, prompts: list[Tokens]) -> list[Tokens]:
    params = types.SamplingParams(max_tokens=MAX_TOKENS, temperature=1.0)
    futures = [student.sample(types.ModelInput.from_ints(prompt), 1, params) for prompt in prompts]
    return [future.result().sequences[0].tokens for future in futures]


def teach(
    teacher: tinker.SamplingClient, prompts: list[Tokens], completions: list[Tokens]
) -> tuple[list[types.Datum], float, int]:
    """Return datums with the teacher's targets, the sum of the teacher's entropies, and the number of tokens."""
    only_score = types.SamplingParams(max_tokens=1)
    futures = [
        teacher.sample(
            types.ModelInput.from_ints(prompt + completion),
            1,
            only_score,
            include_prompt_logprobs=True,
            topk_prompt_logprobs=K,
        )
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    batch: list[types.Datum] = []
    entropy, num_tokens = 0.0, 0
    for prompt, completion, future in zip(prompts, completions, futures, strict=True):
        rows = future.result().topk_prompt_logprobs or []
        targets, weights = soft_targets(rows[len(prompt) :], num_untrained=len(prompt) - 1)
        inputs: dict[str, Any] = {"target_tokens": targets, "weights": weights}
        batch.append(types.Datum(types.ModelInput.from_ints((prompt + completion)[:-1]), inputs))
        entropy -= torch.xlogy(weights, weights).sum().item()
        num_tokens += len(completion)
    return batch, entropy, num_tokens


def soft_targets(rows: list[Any], num_untrained: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return targets and weights [N, K] from the teacher's K likeliest tokens; a row's weights sum to 1 or 0."""
    trained = torch.tensor([[token for token, _ in row[:K]] for row in rows])
    probabilities = torch.tensor([[logprob for _, logprob in row[:K]] for row in rows]).softmax(dim=-1)
    zeros = torch.zeros(num_untrained, K)
    return torch.cat([zeros.long(), trained]), torch.cat([zeros, probabilities])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--teacher", help="a checkpoint for sampling")
    arguments = parser.parse_args()
    with tinker.ServiceClient() as service:
        path = arguments.teacher or sft.run(service).trained.save_weights_for_sampler("teacher").result().path
        divergences, before, after = run(service, path, arguments.steps)
    print(f"The divergence from the teacher fell from {divergences[0]:.3f} to {divergences[-1]:.3f}.")
    print(f"Accuracy on held-out questions rose from {before:.2f} to {after:.2f}.")


if __name__ == "__main__":
    main()
