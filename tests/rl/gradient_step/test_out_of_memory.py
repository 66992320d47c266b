"""A learner whose memory doesn't suffice survives, and the repeated step equals the undisturbed one."""

from __future__ import annotations

import gc
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from out_of_memory_policy import fail_above, new_learner
from ranks import run_ranks
from small_models import packed_group, with_reference
from trees import branching_group

from tandem.rl.config import LossConfig
from tandem.rl.errors import OutOfMemoryError
from tandem.rl.gradient_step.out_of_memory import (
    LEAST_CHUNK_SIZE,
    RowLimit,
    is_out_of_memory,
    numbers_of,
    place_of,
    score_within_memory,
    step_within_memory,
)
from tandem.rl.learner import Learner
from tandem.rl.packing import PackedSequence, pack

LOSSES = {
    "cispo": LossConfig(),
    "sequence": LossConfig(loss_fn="ppo", epsilon=0.2, epsilon_high=0.3, importance_sampling_level="sequence"),
    "kl": LossConfig(kl_coef=0.2, kl_source="current_learner"),
}
SAME = 1e-6


def step_rows() -> list[PackedSequence]:
    """Return rows of 34, 30 and 49 tokens. The longest sequence has 27."""
    forest = pack(branching_group(seed=0), 400, min_gain=1)
    return [with_reference(row) for row in [packed_group(11, [9, 14]), packed_group(6, [12, 12], seed=1), *forest]]


@pytest.fixture
def learner(qwen3_path: Path) -> Learner:
    return new_learner(qwen3_path)


def undisturbed(learner: Learner, loss: LossConfig) -> dict[str, torch.Tensor]:
    start = learner.state()
    learner.step(step_rows(), loss, 1e-3)
    after = learner.state().adapter
    learner.load_state(start)
    return after


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=SAME, rtol=0)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_step_that_does_not_fit_is_the_same_step_over_shorter_rows(learner: Learner, loss: LossConfig) -> None:
    expected, start = undisturbed(learner, loss), learner.state().adapter
    policy, limit, reported = fail_above(learner, 28), RowLimit(), []
    metrics = step_within_memory(learner.step, limit, step_rows(), loss, 1e-3, 512, reported.append)
    assert policy.num_failures == len(reported) > 0
    assert_same(learner.state().adapter, expected)
    assert max(float((expected[name] - start[name]).abs().max()) for name in start) > 1e-4
    assert limit.row_tokens is not None and limit.row_tokens <= 28
    assert metrics["data/step_trainer_tokens"] == sum(row.num_trained_tokens for row in step_rows())

    policy.num_failures = 0
    step_within_memory(learner.step, limit, step_rows(), loss, 1e-3, 512)
    assert policy.num_failures == 0  # the length is remembered


def test_the_logits_of_fewer_tokens_may_be_what_fits(learner: Learner) -> None:
    expected, limit = undisturbed(learner, LossConfig()), RowLimit()
    fail_above(learner, 1000, chunk_size=200)
    step_within_memory(learner.step, limit, step_rows(), LossConfig(), 1e-3, 1024)
    assert limit.chunk_size == 128
    assert_same(learner.state().adapter, expected)


def test_a_single_sequence_that_does_not_fit_is_named(learner: Learner) -> None:
    """The error comes after the smallest chunk was tried, and the learner is as before."""
    before, rows = learner.state().adapter, pack(branching_group(seed=0), 400, min_gain=1)
    fail_above(learner, 10)
    limit = RowLimit()
    with pytest.raises(OutOfMemoryError, match="tried to allocate 1152921504606846976 bytes") as caught:
        step_within_memory(learner.step, limit, rows, LossConfig(), 1e-3, 1024)
    error = pickle.loads(pickle.dumps(caught.value))
    assert (error.row_tokens, error.chunk_size) == (caught.value.row_tokens, LEAST_CHUNK_SIZE)
    failed = next(row for row in limit.rows(rows) if row.num_tokens == error.row_tokens)
    assert failed.trajectory_ids is not None
    assert place_of(error, limit.rows(rows)) == (
        f"group 0, trajectory {int(failed.trajectory_ids[-1])} ({error.row_tokens} tokens)"
    )
    assert_same(learner.state().adapter, before)
    fail_above(learner, 1000)
    learner.step(rows, LossConfig(), 1e-3)


def num_tensors() -> int:
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def test_what_was_accumulated_before_is_discarded_and_freed(learner: Learner) -> None:
    rows = [packed_group(11, [9]), packed_group(11, [90])]
    fail_above(learner, 50)
    gc.collect()
    tensors = num_tensors()
    learner.forward_backward(rows, LossConfig())
    left = num_tensors()
    assert left == tensors, "the graph of the failed row is still there"
    with pytest.raises(OutOfMemoryError):
        learner.optim_step(1e-3)
    assert not any(parameter.grad.any() for parameter in learner.policy.parameters.values())
    assert learner.step([], LossConfig(), 1e-3)["data/step_trainer_tokens"] == 0


def test_scores_of_rows_that_do_not_fit(learner: Learner) -> None:
    rows, limit = step_rows(), RowLimit()
    expected = learner.score(rows)
    policy = fail_above(learner, 14)  # 28 without a gradient
    before, version = learner.state().adapter, {name: t + 0.01 for name, t in learner.state().adapter.items()}
    for scored in score_within_memory(lambda rows, chunk: learner.score(rows, chunk), limit, rows, 512), expected:
        for own, wanted in zip(scored, expected, strict=True):
            torch.testing.assert_close(own, wanted, atol=1e-5, rtol=0, equal_nan=True)
    assert policy.num_failures > 0
    policy.room = 1
    with pytest.raises(OutOfMemoryError):
        score_within_memory(lambda rows, chunk: learner.score(rows, chunk, version), limit, rows, 512)
    assert_same(learner.state().adapter, before)


# Several learners


def one_rank(rank: int, path: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    learner = new_learner(path)
    start = learner.state()
    fail_above(learner, 28 if rank == 1 else 1000)
    found = {}
    for name, loss in LOSSES.items():
        learner.load_state(start)
        limit, said = RowLimit(), []

        def step(
            rows: list[PackedSequence], loss: LossConfig, rate: float, chunk: int, said: list[str] = said
        ) -> object:
            """Take this rank's share. The ranks agree on the row that failed, as a group does."""
            try:
                return learner.step(rows[rank::2], loss, rate, chunk)
            except OutOfMemoryError as error:
                said.append(error.said)
                errors: list[OutOfMemoryError] = [error, error]
                dist.all_gather_object(errors, error)
                raise max(errors, key=lambda error: error.row_tokens) from None

        metrics = step_within_memory(step, limit, step_rows(), loss, 1e-3, 512)
        found[name] = {"adapter": learner.state().adapter, "metrics": metrics, "said": said}
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_both_learners_learn_of_it_before_the_gradients_are_summed(qwen3_path: Path, tmp_path: Path) -> None:
    run_ranks(one_rank, (qwen3_path, tmp_path))
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    learner = new_learner(qwen3_path)
    for name, loss in LOSSES.items():
        assert first[name]["metrics"] == second[name]["metrics"]
        assert set(first[name]["said"]) == {"another learner's memory was full"}
        assert all("tried to allocate" in said for said in second[name]["said"])
        assert len(first[name]["said"]) == len(second[name]["said"]) > 0
        assert_same(first[name]["adapter"], second[name]["adapter"])
        assert_same(first[name]["adapter"], undisturbed(learner, loss))


# Which errors these are


def test_errors_are_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert numbers_of(caught.value) == "tried to allocate 1152921504606846976 bytes"
    cuda = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.15 GiB of which 10.25 MiB "
        "is free. Including non-PyTorch memory, this process has 79.13 GiB memory in use. Of the allocated memory 78 "
        "GiB is allocated by PyTorch, and 10 MiB is reserved by PyTorch but unallocated."
    )
    assert is_out_of_memory(cuda)
    assert numbers_of(cuda) == (
        "Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.15 GiB of which 10.25 MiB is free"
    )
    assert is_out_of_memory(MemoryError()) and numbers_of(MemoryError()) == "MemoryError"
    for said in (
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    ):
        assert is_out_of_memory(RuntimeError(said))
    for said in ("CUDA error: an illegal memory access was encountered", "shape mismatch"):
        assert not is_out_of_memory(RuntimeError(said))
    assert not is_out_of_memory(OSError("DefaultCPUAllocator: can't allocate memory"))


def test_rows_are_split_to_half_of_what_failed() -> None:
    rows, limit = [packed_group(10, [20, 20, 20])], RowLimit()
    limit.shrink(OutOfMemoryError("", 70, 1024), rows)
    assert limit == RowLimit(35, 512)
    assert [row.num_tokens for row in limit.rows(rows)] == [30, 30, 30]
    limit.shrink(OutOfMemoryError("", 30, 512), limit.rows(rows))  # a single sequence
    assert limit == RowLimit(35, 256)
    with pytest.raises(OutOfMemoryError):
        limit.shrink(OutOfMemoryError("", 30, LEAST_CHUNK_SIZE), limit.rows(rows))
    assert limit == RowLimit(35, 256)
