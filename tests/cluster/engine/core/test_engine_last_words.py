"""The cause of a core's death is read from the log that it shares with its parent."""

import traceback

import pytest
import torch

from tandem.cluster.engine.core.last_words import last_error


def fails_to_allocate():
    torch.empty(1 << 60, dtype=torch.uint8)


def fails_with(error):
    def fail():
        raise error

    return fail


@pytest.mark.parametrize(
    ("fail", "said", "is_shortage"),
    [
        (fails_to_allocate, "DefaultCPUAllocator: can't allocate memory", True),
        (fails_with(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")), "allocate 2 GiB", True),
        (fails_with(torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered\nX")), "ECC error", False),
        (fails_with(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `x`")), "CUBLAS_STATUS", True),
    ],
)
def test_a_real_traceback_is_read(tmp_path, fail, said, is_shortage):
    log = tmp_path / "worker.err"
    try:
        fail()
    except RuntimeError:
        log.write_text(f"an earlier line\n{traceback.format_exc()}\nINFO later lines\n")
    assert said in last_error(log)
    assert ("gpu_memory_utilization" in last_error(log)) == is_shortage


def test_without_such_an_error_nothing_is_said(tmp_path):
    (tmp_path / "log").write_text("Traceback\nKeyError: 'x'\nOutOfMemoryError is only mentioned\n")
    assert last_error(tmp_path / "log") == last_error(tmp_path / "none") == last_error(tmp_path) == ""
