"""Training loops through the real `tinker` SDK: calls drawn from a seed, and the answers that they got."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import tinker
from patient_client import PatientClient
from tinker import types

BASE_MODEL = "tandem/tiny"
VOCABULARY = 500
MAX_TOKENS = 4
CALL_S = 1200.0  # a call may have to wait for a restart of the service
LOSSES = ("cross_entropy", "importance_sampling", "ppo", "cispo")


@dataclass(frozen=True)
class Batch:
    """One forward_backward."""

    loss: str
    datums: tuple[types.Datum, ...]


@dataclass(frozen=True)
class Round:
    """Some forward_backward calls, an optimizer step, and perhaps saves, all sent before the first answer."""

    batches: tuple[Batch, ...]
    learning_rate: float
    saves_state: bool
    saves_for_sampler: bool
    """Save the weights for a sampler, and ask it for samples."""


@dataclass(frozen=True)
class Plan:
    """All calls of one run."""

    seed: int
    rank: int
    rounds: tuple[Round, ...]


@dataclass(frozen=True)
class Answer:
    round: int
    kind: str
    value: Any
    """What must be equal in every run of the same plan."""


@dataclass
class Outcome:
    """A run that has followed a plan."""

    run_id: str = ""
    answers: list[Answer] = field(default_factory=list)


def draw(seed: int, num_rounds: int) -> Plan:
    """Return a plan. The last round saves both, so that the end of the run can be compared."""
    rng = random.Random(seed)
    rounds = [_round(rng, number, is_last=number == num_rounds - 1) for number in range(num_rounds)]
    return Plan(seed, rng.choice((4, 8)), tuple(rounds))


def _round(rng: random.Random, number: int, is_last: bool) -> Round:
    batches = tuple(_batch(rng) for _ in range(rng.choice((1, 1, 2))))
    saves = number % 3 == 2 or is_last
    return Round(
        batches, rng.choice((1e-3, 3e-4, 0.0)), saves_state=saves, saves_for_sampler=number % 2 == 1 or is_last
    )


def _batch(rng: random.Random) -> Batch:
    loss = rng.choice(LOSSES)
    return Batch(loss, tuple(_datum(rng, loss) for _ in range(rng.randint(1, 3))))


def _datum(rng: random.Random, loss: str) -> types.Datum:
    tokens = [rng.randrange(3, VOCABULARY) for _ in range(rng.randint(4, 24))]
    length = len(tokens) - 1
    inputs: dict[str, Any] = {"target_tokens": _tensor(tokens[1:], "int64")}
    if loss == "cross_entropy":
        inputs["weights"] = _tensor([rng.random() for _ in range(length)], "float32")
    else:
        inputs["logprobs"] = _tensor([-6 - rng.random() for _ in range(length)], "float32")
        inputs["advantages"] = _tensor([rng.gauss(0, 1) for _ in range(length)], "float32")
    return types.Datum(types.ModelInput.from_ints(tokens[:-1]), inputs)


def _tensor(values: list[Any], dtype: Any) -> types.TensorData:
    return types.TensorData(data=values, dtype=dtype, shape=[len(values)])


class Loop:
    """Follows a plan. Its calls are a client's own, so whatever the SDK retries is retried, and nothing else."""

    def __init__(self, url: str, key: str, plan: Plan, on_round: Callable[[], None] = lambda: None):
        self._plan, self._on_round = plan, on_round
        self._service = tinker.ServiceClient(base_url=url, api_key=key)
        self._training = self._service.create_lora_training_client(BASE_MODEL, plan.rank, seed=plan.seed).result()
        self.outcome = Outcome(self._training.model_id)

    def run(self) -> Outcome:
        for number, planned in enumerate(self._plan.rounds):
            self.take(number, planned)
            self._on_round()
        return self.outcome

    def take(self, number: int, planned: Round, between: Callable[[], None] | None = None) -> None:
        """Take a round: send all calls, then wait for their answers, and keep them.

        With `between`, the gradient's answers are waited for, then it is called, and then the step is sent.
        """
        client, sent = self._training, list[tuple[str, Any]]()
        for batch in planned.batches:
            sent.append(("forward_backward", client.forward_backward(list(batch.datums), batch.loss)))
        if between is not None:
            for _, future in sent:
                future.result(timeout=CALL_S)
            between()
        sent.append(("optim_step", client.optim_step(types.AdamParams(learning_rate=planned.learning_rate))))
        if planned.saves_state:
            sent.append(("save_state", client.save_state(f"state-{number}")))
        if planned.saves_for_sampler:
            sent.append(("save_weights_for_sampler", client.save_weights_for_sampler(f"sampler-{number}")))
        for kind, future in sent:
            result = future.result(timeout=CALL_S)
            self.outcome.answers.append(Answer(number, kind, self._comparable(result)))
            if kind == "save_weights_for_sampler":
                self._sample(number, result.path)

    def _comparable(self, result: Any) -> Any:
        """Return everything of an answer that doesn't depend on the run's id or on the clock."""
        if isinstance(result, types.ForwardBackwardOutput):
            content = b"".join(_array(output["logprobs"]).tobytes() for output in result.loss_fn_outputs)
            return hashlib.sha256(content).hexdigest(), _timeless(result.metrics)
        if isinstance(result, types.OptimStepResponse):
            return _timeless(result.metrics or {})
        return result.path.replace(self.outcome.run_id, "RUN")

    def _sample(self, number: int, path: str) -> None:
        sampler = patiently(lambda: self._service.create_sampling_client(model_path=path).result())
        prompt = types.ModelInput.from_ints([5, 6, 7])
        params = types.SamplingParams(max_tokens=MAX_TOKENS, temperature=0.0)
        answer = sampler.sample(prompt, 2, params).result(timeout=CALL_S)
        shapes = [(len(own.tokens), len(own.logprobs or ())) for own in answer.sequences]
        self.outcome.answers.append(Answer(number, "sample", shapes))


def _array(values: types.TensorData) -> np.ndarray[Any, Any]:
    return np.asarray(values.data, np.float32)


def _timeless(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in sorted(metrics.items()) if "time" not in name}


def patiently(ask: Callable[[], Any]) -> Any:
    """Return what `ask` returns, also where the SDK gives up earlier: it retries the making of a sampler ten times."""
    deadline = time.monotonic() + CALL_S
    while True:
        try:
            return ask()
        except (tinker.APIConnectionError, tinker.InternalServerError):
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def follow(url: str, key: str, plans: Sequence[Plan], on_round: Callable[[], None] = lambda: None) -> list[Outcome]:
    """Follow all plans at once, each in a session of its own."""
    loops = [Loop(url, key, plan, on_round) for plan in plans]
    with ThreadPoolExecutor(len(plans), "loop") as pool:
        return [future.result() for future in [pool.submit(loop.run) for loop in loops]]


def versions(http: httpx.Client, run_id: str) -> list[tuple[int, str]]:
    """Return step and digest of each version of a run's model."""
    client, name = PatientClient(http, CALL_S), run_id.replace(":", "-")
    [model] = client.all_pages("/preview/models", name=name)
    listed = client.all_pages(f"/preview/models/{model['id']}/versions")
    return [(version["step"], version["digest"]) for version in listed]


def differences(plan: Plan, undisturbed: Outcome, disturbed: Outcome) -> list[str]:
    """Return a sentence for every answer that is missing, doubled or another one."""
    found = []
    if len(undisturbed.answers) != len(disturbed.answers):
        found.append(f"Run {plan.seed} got {len(disturbed.answers)} answers instead of {len(undisturbed.answers)}.")
    for expected, answer in zip(undisturbed.answers, disturbed.answers, strict=False):
        if answer != expected:
            found.append(f"Run {plan.seed} got {answer} instead of {expected}.")
    return found


def check_counts(plan: Plan, outcome: Outcome, made: Sequence[tuple[int, str]]) -> list[str]:
    """Return a sentence for every number of an optimizer step or a version that a lost or doubled call would give."""
    found = []
    steps = [answer.value.get("optimizer_step") for answer in outcome.answers if answer.kind == "optim_step"]
    if steps != [float(number) for number in range(1, len(plan.rounds) + 1)]:
        found.append(f"The optimizer steps of run {plan.seed} were {steps}.")
    expected = list(range(1, 1 + sum(planned.saves_for_sampler for planned in plan.rounds)))
    if sorted(step for step, _ in made if step) != expected:
        found.append(f"Run {plan.seed} has the versions {made} instead of {expected}.")
    return found
