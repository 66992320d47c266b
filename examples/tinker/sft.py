"""Supervised fine-tuning: teach right answers by cross-entropy.

    python examples/tinker/sft.py

One batch is in the air while the next one is sent, so the service never waits for this program.
"""

import argparse
import random
from dataclasses import dataclass, field
from typing import Any

import tinker
from common import BASE_MODEL, Question, accuracy, answer_tokens, datum, prompt_tokens, questions, report
from tinker import types


@dataclass
class Result:
    trained: tinker.TrainingClient
    before: float
    """Accuracy on held-out questions, and again after training."""
    after: float
    losses: list[float] = field(default_factory=list)
    """Of a trained token, for each step."""


def run(service: tinker.ServiceClient, steps: int = 40, batch_size: int = 32, learning_rate: float = 2e-3) -> Result:
    rng = random.Random(0)
    client = service.create_lora_training_client(BASE_MODEL, rank=16, seed=0).result()
    tokenizer = client.get_tokenizer()
    held_out = questions(random.Random(1), 64, held_out=True)
    sampler = client.save_weights_and_get_sampling_client().result()
    result = Result(client, before=accuracy(sampler, tokenizer, held_out), after=0.0)

    waiting: list[tuple[float, Any, Any]] = []
    for step in range(steps):
        batch = [example(tokenizer, question) for question in questions(rng, batch_size)]
        num_trained = sum(sum(d.loss_fn_inputs["weights"].data) for d in batch)
        adam = types.AdamParams(learning_rate=learning_rate * (1 - step / steps))
        waiting.append((num_trained, client.forward_backward(batch, "cross_entropy"), client.optim_step(adam)))
        if len(waiting) > 1 or step == steps - 1:
            finish(waiting, result)
    finish(waiting, result)

    sampler = client.save_weights_and_get_sampling_client().result()
    result.after = accuracy(sampler, tokenizer, held_out)
    return result


def example(tokenizer: Any, question: Question) -> types.Datum:
    answer = answer_tokens(tokenizer, question.answer)
    return datum(prompt_tokens(tokenizer, question.messages), answer, weights=[1.0] * len(answer))


def finish(waiting: list[tuple[float, Any, Any]], result: Result) -> None:
    """Wait for the oldest step and report it. Losses are sums, so the program divides them by what it counts."""
    if not waiting:
        return
    num_trained, backward, optim = waiting.pop(0)
    output = backward.result()
    optim.result()
    result.losses.append(output.metrics["loss:sum"] / num_trained)
    report(len(result.losses), loss=result.losses[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    with tinker.ServiceClient() as service:
        result = run(service, parser.parse_args().steps)
        saved = result.trained.save_state("sft").result()
    print(f"Accuracy on held-out questions rose from {result.before:.2f} to {result.after:.2f}.")
    print(f"Continue with create_training_client_from_state_with_optimizer({saved.path!r}).")


if __name__ == "__main__":
    main()
