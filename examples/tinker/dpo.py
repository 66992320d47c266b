"""DPO: learn from pairs of a preferred and a rejected answer, with a loss that this program defines.

    python examples/tinker/dpo.py

`forward_backward_custom` computes logprobs on the service, the loss and its derivative here, and sends the derivative
back as the weights of a cross-entropy. So any differentiable function of logprobs can be a loss.
"""

import argparse
import random
from typing import Any

import tinker
import torch
from common import BASE_MODEL, Question, Tokens, accuracy, answer_tokens, datum, prompt_tokens, questions, report
from tinker import types


def run(
    service: tinker.ServiceClient,
    steps: int = 24,
    num_pairs: int = 16,
    learning_rate: float = 1e-3,
    beta: float = 0.5,
) -> tuple[list[float], list[float]]:
    """Return for each step the loss of a pair, and the share of pairs whose preferred answer has the higher reward."""
    rng = random.Random(0)
    client = service.create_lora_training_client(BASE_MODEL, rank=16, seed=0).result()
    tokenizer = client.get_tokenizer()
    reference = client.save_weights_and_get_sampling_client().result()  # the weights before training, unchanged
    losses: list[float] = []
    preferred: list[float] = []
    for step in range(steps):
        pairs = [pair(tokenizer, question, rng) for question in questions(rng, num_pairs)]
        batch = [datum(prompt, answer, weights=[1.0] * len(answer)) for both in pairs for prompt, answer in both]
        reference_P2 = answer_logprobs(reference, [sequence for both in pairs for sequence in both])

        def dpo(
            data: list[types.Datum], logprobs: list[torch.Tensor], reference_P2: torch.Tensor = reference_P2
        ) -> Any:
            """Return -sum log sigmoid(beta * (r_chosen - r_rejected)), r = log policy / reference of an answer."""
            policy = torch.stack(
                [(lp * d.loss_fn_inputs["weights"].to_torch()).sum() for d, lp in zip(data, logprobs, strict=True)]
            )
            rewards_P2 = policy.view(-1, 2) - reference_P2
            margins = rewards_P2[:, 0] - rewards_P2[:, 1]
            loss = -torch.nn.functional.logsigmoid(beta * margins).sum()
            return loss, {"preferred": (margins > 0).float().mean().item()}

        backward = client.forward_backward_custom(batch, dpo)
        optim = client.optim_step(types.AdamParams(learning_rate=learning_rate))
        metrics = backward.result().metrics
        optim.result()
        losses.append(metrics["loss:sum"] / num_pairs)
        preferred.append(metrics["preferred"])
        report(step, loss=losses[-1], preferred=preferred[-1])
    sampler = client.save_weights_and_get_sampling_client().result()
    held_out = questions(random.Random(1), 64, held_out=True)
    print(f"Accuracy on held-out questions: {accuracy(sampler, tokenizer, held_out):.2f}")
    return losses, preferred


def pair(tokenizer: Any, question: Question, rng: random.Random) -> list[tuple[Tokens, Tokens]]:
    """Return prompt and answer twice: with the preferred answer, then with the rejected one."""
    prompt = prompt_tokens(tokenizer, question.messages)
    return [(prompt, answer_tokens(tokenizer, text)) for text in (question.answer, question.wrong_answer(rng))]


def answer_logprobs(sampler: tinker.SamplingClient, sequences: list[tuple[Tokens, Tokens]]) -> torch.Tensor:
    """Return the logprob of each answer given its prompt, two in a row: [P, 2]."""
    futures = [sampler.compute_logprobs(types.ModelInput.from_ints(prompt + answer)) for prompt, answer in sequences]
    sums = [
        sum(future.result()[len(prompt) :])  # type: ignore[arg-type]  # None stands at position 0 only
        for future, (prompt, _) in zip(futures, sequences, strict=True)
    ]
    return torch.tensor(sums).view(-1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=24)
    with tinker.ServiceClient() as service:
        losses, preferred = run(service, parser.parse_args().steps)
    print(
        f"The loss fell from {losses[0]:.3f} to {losses[-1]:.3f}; {preferred[-1]:.0%} of pairs are preferred rightly."
    )


if __name__ == "__main__":
    main()
