"""The tinker SDK connected to the tests' service, and pieces of user code that its tests share."""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import tinker
from paths import ROOT
from tinker import types

TINY = "tandem/tiny"
ENGINE_TOLERANCE = 1e-3  # of float32 logprobs that the learner and the engine compute in different batches
LEARNER_TOLERANCE = 1e-4  # of those that the learner computes in different rows
ADAM = types.AdamParams(learning_rate=1e-2)


def connect(service: Any, **options: Any) -> tinker.ServiceClient:
    return tinker.ServiceClient(base_url=service.url, api_key=f"tml-{service.key}", **options)


def rest_client(service: Any) -> tinker.RestClient:
    return tinker.RestClient(base_url=service.url, api_key=f"tml-{service.key}")


def new_run(sdk: tinker.ServiceClient, seed: int = 3, rank: int = 8, **options: Any) -> tinker.TrainingClient:
    return sdk.create_lora_training_client(TINY, rank=rank, seed=seed, **options).result()


def random_tokens(seed: int, length: int) -> list[int]:
    """Return ordinary tokens of the tiny model: no control token is among them."""
    rng = random.Random(seed)
    return [rng.randrange(10, 512) for _ in range(length)]


def prompt(tokens: Sequence[int]) -> types.ModelInput:
    return types.ModelInput.from_ints(list(tokens))


def datum(tokens: Sequence[int], **inputs: Any) -> types.Datum:
    """Return a datum that predicts each token from those before it. `inputs` default to weights of 1."""
    inputs = inputs or {"weights": [1.0] * (len(tokens) - 1)}
    return types.Datum(prompt(tokens[:-1]), {"target_tokens": list(tokens[1:]), **inputs})


def batch(seed: int = 0, count: int = 4) -> list[types.Datum]:
    return [datum(random_tokens(seed * 1000 + index, 12 + 3 * index)) for index in range(count)]


def logprobs(output: types.ForwardBackwardOutput) -> list[np.ndarray]:
    """Return the logprobs of each datum, of the shape of its targets."""
    return [record["logprobs"].to_numpy() for record in output.loss_fn_outputs]


def state(client: tinker.TrainingClient, seed: int = 77) -> np.ndarray:
    """Return logprobs that show the client's weights, without training."""
    return np.concatenate(logprobs(client.forward(batch(seed), "cross_entropy").result()))


def step(client: tinker.TrainingClient, data: list[types.Datum] | None = None) -> types.ForwardBackwardOutput:
    """Train one batch by cross-entropy, and return its output once the weights have changed."""
    backward = client.forward_backward(data or batch(), "cross_entropy")
    client.optim_step(ADAM).result()
    return backward.result()


@contextmanager
def example_programs() -> Iterator[Callable[[str], ModuleType]]:
    """Import programs of examples/tinker by their names inside the block, and forget them after it."""
    folder = str(ROOT / "examples" / "tinker")
    sys.path.insert(0, folder)
    try:
        yield importlib.import_module
    finally:
        sys.path.remove(folder)
        for name, module in list(sys.modules.items()):
            if (getattr(module, "__file__", None) or "").startswith(folder):
                del sys.modules[name]
