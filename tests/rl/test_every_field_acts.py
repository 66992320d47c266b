"""Every option of the published schema changes the result of a job: its gradients, weights, metrics, events or files.

Each job runs through the real store, preparation, stages and learner, on a small random model in this process.
"""

from __future__ import annotations

import functools
import json
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import zstandard
from small_models import save_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from wire_data import choice, group, load_tokenizer, published_schemas, user

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.config import BaseModelConfig, CoordinatorConfig
from tandem.cluster.jobs.coordinator import Coordinator
from tandem.cluster.jobs.job import PolicyVersion
from tandem.cluster.jobs.preparation import PreparationWorker
from tandem.cluster.jobs.preparing_ahead import PreparingAhead
from tandem.cluster.jobs.stages import JobStages
from tandem.cluster.logprobs.pool import ScoreReport
from tandem.rl.batch import build_batch
from tandem.rl.checkpoints import LearnerState
from tandem.rl.config import TrainingConfig
from tandem.rl.gradient_step.size import StepSize
from tandem.rl.learner import Learner
from tandem.rl.policy import Policy
from tandem.serve.jobs.references import kl_reference
from tandem.serve.store.store import Store

BASE = "base"
VOCABULARY = 448  # the recorded tokenizer has 425 tokens
JOB = str(uuid.UUID(int=7))  # the order of the batch follows from it


def sampled(text: str, *logprobs: float) -> dict[str, Any]:
    """Return a choice whose tokens have these logprobs in turn: far from the policy's, on both sides."""
    turn = choice(text)
    for index, token in enumerate(turn["logprobs"]["content"]):
        token["logprob"] = logprobs[index % len(logprobs)]
    return turn


GROUPS = [
    group(
        (0.0, [user("1 + 6 = ?"), sampled("six", -9.0, -4.0)]),
        (0.2, [user("1 + 6 = ?"), sampled("7, I think", -3.0, -8.0)]),
        (1.0, [user("1 + 6 = ?"), sampled("seven", -9.0, -5.0)]),
    ),
    group(
        (0.0, [user("2 + 2 = ?"), sampled("five", -4.0), user("Sure?"), {"role": "assistant", "content": "no"}]),
        (1.0, [user("2 + 2 = ?"), sampled("four", -9.0, -4.5)]),
    ),
]
SCHEMA: dict[str, dict[str, Any]] = published_schemas()["ExperimentalTrainingConfig"]["properties"]
KL = {"kl_penalty_coef": 0.5}
CHANGES: dict[str, tuple[Any, dict[str, Any]]] = {  # field: (a value with an effect, other options that it needs)
    "advantage_balance": (0.5, {}),
    "allow_training_without_logprobs": (True, {}),
    "epsilon": (0.3, {}),
    "epsilon_high": (0.3, {}),
    "importance_sampling_level": ("sequence", {}),
    "kimi_k2_tau": (0.1, {}),
    "kl_penalty_coef": (0.5, {}),
    "kl_penalty_reference_step": (3, KL),
    "kl_penalty_source": ("current_learner", KL),
    "kl_penalty_step_lag": (2, KL),
    "kl_ref_adapter_path": ("team/project/other:step1", KL),
    "learning_rate": (1e-3, {}),
    "logprob_calculation_chunk_size": (7, {}),
    "loss_fn": ("ppo", {}),
    "mask_prob_ratio": (True, {"epsilon": 0.3}),
    "max_negative_advantage_importance_sampling_weight": (2.0, {}),
    "normalize_advantages": (False, {}),
    "num_trajectories_learning_rate_multiplier_power": (0.5, {}),
    "packed_sequence_length": (64, {}),
    "plot_tensors": (True, {}),
    "ppo": (True, {}),
    "precalculate_logprobs": (True, {}),
    "scale_learning_rate_by_reward_std_dev": (True, {}),
    "scale_rewards": (False, {}),
    "truncated_importance_sampling": (2.0, {}),
}


class TextModel:
    """A base model as preparation needs it."""

    def build_batch(self, groups: Any, config: TrainingConfig, shuffle_seed: int | None) -> Any:
        return build_batch(groups, load_tokenizer(), config, max_model_len=256, shuffle_seed=shuffle_seed)


class LocalLearners:
    """A group of one learner in this process, and a job's training on it. Any digest is a version: an adapter that
    follows from it."""

    step_size, is_ready, waiting_for = StepSize(rows=1), True, None

    def __init__(self, policy: Policy) -> None:
        self.learner = Learner(policy)
        self._shapes = {name: parameter.shape for name, parameter in policy.parameters.items()}

    @contextmanager
    def training(self, job: str, num_tokens: int, warn: object, clock: object) -> Iterator[LocalLearners]:
        yield self

    def start(self, on_wait: Callable[[], None]) -> None:
        on_wait()

    def load(self, digest: str, *_: object) -> None:
        self.learner.load_state(LearnerState(self._adapter(digest), {}))

    def step(self, sequences: Any, loss: Any, rate: float, chunk_size: int, *on_wait: Any) -> dict[str, float]:
        return self.learner.step(sequences, loss, rate, chunk_size)

    def finish(self, on_wait: Callable[[], None]) -> None:
        on_wait()

    def save(self, metadata: Mapping[str, Any], on_wait: Callable[[], None]) -> str:
        return "trained"

    def score(
        self, training: Any, digest: str, rows: Any, chunk_size: int, on_wait: Any
    ) -> tuple[list[Tensor], ScoreReport]:
        return self.learner.score(rows, chunk_size, self._adapter(digest)), ScoreReport()

    def _adapter(self, digest: str) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(sum(digest.encode()))
        return {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in self._shapes.items()}


class LargestLogits(TorchDispatchMode):
    """Records the largest number of tokens whose logits are computed at once."""

    num_tokens = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._log_softmax.default:
            self.num_tokens = max(self.num_tokens, result.shape[0])
        return result


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return Policy.load(save_model(tmp_path_factory.mktemp("models") / "m", vocab_size=VOCABULARY), "cpu")


Result = dict[str, Any]
Run = Callable[[Mapping[str, Any]], Result]


@pytest.fixture(scope="module")
def store_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("store") / "tandem.db"
    store_with_versions(file).close()
    return file


@pytest.fixture(scope="module")
def result_of(policy: Policy, store_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A function that runs a job with these options on a model with four versions, and returns all that it leaves."""

    @functools.cache
    def run(options: str) -> Result:
        directory = tmp_path_factory.mktemp("job")
        store = Store(f"sqlite:///{shutil.copy(store_file, directory)}")
        artifacts = Artifacts(str(directory / "artifacts"))
        config = TrainingConfig.model_validate_json(options)
        body = {"trajectory_groups": [group.model_dump(mode="json", exclude_unset=True) for group in GROUPS]}
        artifacts.write_blob("payloads/job.json.zst", zstandard.compress(json.dumps(body).encode()))
        accept(store, JOB, store.models.page("team")[0].id, config, kl_reference(config, "/root"))
        learners = LocalLearners(policy)
        with LargestLogits() as logits:
            assert coordinator_of(store, artifacts, learners).run_next()
        job = store.jobs.get(JOB, "team")
        assert job.state == "succeeded", job.error
        return {
            "events": [(event.type, untimed(event.data)) for event in store.jobs.events(JOB, "team", 100)],
            "metrics": untimed(store.versions.page(job.model_id, "team", 10)[-1].metrics),
            "weights": {name: tensor.tolist() for name, tensor in learners.learner.state().adapter.items()},
            "largest_logits": logits.num_tokens,
            "files": sorted(artifacts.list_job_artifacts(JOB)),
        }

    return lambda options: run(json.dumps(options, sort_keys=True))


def untimed(data: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in data.items() if not name.startswith("time/")}


def store_with_versions(file: Path) -> Store:
    """Return a store of a model with versions 1 to 4, of shrinking reward spread, and of another model with one."""
    store = Store(f"sqlite:///{file}")
    store.claims.put_initial_version(BASE, "zero")
    for name, num_versions in (("agent", 4), ("other", 1)):
        model = store.models.add("team", "project", name, BASE, return_existing=False)
        for step in range(1, num_versions + 1):
            accept(store, str(uuid.uuid4()), model.id, TrainingConfig(), None)
            claim = store.claims.claim_next(BASE, "test", 60)
            assert claim is not None
            version = PolicyVersion(model.id, step, f"{name}{step}")
            store.claims.complete(claim, version, {"reward_std_dev": 0.5 - 0.05 * step})
    return store


def accept(store: Store, job_id: str, model_id: str, config: TrainingConfig, reference: Any) -> None:
    options = config.model_dump(mode="json", exclude_none=True)
    store.jobs.add(job_id, model_id, "payloads/job.json.zst", options, "0" * 64, reference=reference)


def coordinator_of(store: Store, artifacts: Artifacts, learners: LocalLearners) -> Coordinator:
    worker = PreparationWorker({BASE: TextModel()}, artifacts)  # type: ignore[dict-item]

    class LocalPreparation:
        plot = staticmethod(lambda job_id, rows, on_wait: worker.plot(job_id, rows))

        def batch(self, base_model: str, job: Any, on_wait: Any = None, on_cpu: Any = None) -> Any:
            return worker.batch(base_model, job)

    settings = BaseModelConfig(name=BASE, path="unused", optimizer={"learning_rate": 5e-3})
    preparation: Any = LocalPreparation()
    ahead = PreparingAhead(BASE, store.claims, preparation)
    logprobs: Any = SimpleNamespace(score=learners.score, pool=SimpleNamespace(tolerance=0.0))
    stages = JobStages(settings, preparation, ahead, learners, logprobs)  # type: ignore[arg-type]
    return Coordinator(CoordinatorConfig(), store.claims, stages)


def parts_that_differ(one: Result, other: Result) -> Sequence[str]:
    return [name for name in one if one[name] != other[name]]


def test_every_option_is_covered() -> None:
    assert set(CHANGES) == set(TrainingConfig.model_fields) == set(SCHEMA)


@pytest.mark.parametrize("field", CHANGES)
def test_setting_it_changes_the_result(field: str, result_of: Run) -> None:
    value, besides = CHANGES[field]
    changed = parts_that_differ(result_of(besides), result_of({**besides, field: value}))
    if field == "plot_tensors":
        assert changed == ["files"]
    elif field == "logprob_calculation_chunk_size":  # rounding differs too, because sums have another order
        assert result_of({field: value})["largest_logits"] == value < result_of({})["largest_logits"]
    else:
        assert {"events", "weights"} <= set(changed)


WORDS = {
    name: member["enum"] for name, schema in SCHEMA.items() for member in schema.get("anyOf", ()) if "enum" in member
}


@pytest.mark.parametrize("field", WORDS)
def test_each_word_that_it_takes_has_a_result_of_its_own(field: str, result_of: Run) -> None:
    words = WORDS[field]
    results = [result_of({**CHANGES[field][1], field: word})["weights"] for word in words]
    assert len({str(weights) for weights in results}) == len(words) > 1


def test_nothing_changes_by_itself(result_of: Run) -> None:
    assert not parts_that_differ(result_of({}), result_of({"learning_rate": 5e-3, "loss_fn": "cispo", "epsilon": 1.0}))


def test_the_memory_option_changes_no_number(result_of: Run) -> None:
    one, other = result_of({}), result_of({"logprob_calculation_chunk_size": 7})
    for name in one["weights"]:
        torch.testing.assert_close(torch.tensor(one["weights"][name]), torch.tensor(other["weights"][name]))
