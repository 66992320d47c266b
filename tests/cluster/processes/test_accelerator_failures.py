"""Errors as torch and NCCL word them: those of a GPU are told from those of a program, and retried."""

import pytest
import ray
import torch
import torch.distributed as dist
from ray._private.label_utils import validate_label_selector

from tandem.cluster.errors import PeerLostError
from tandem.cluster.learners.failures.gpu_faults import GpuFaults
from tandem.cluster.learners.failures.stacks import Whereabouts
from tandem.cluster.learners.rendezvous import peers_connected
from tandem.cluster.processes.accelerator_failures import accelerator_fault
from tandem.cluster.processes.ray_failures import stage_error
from tandem.rl.errors import OutOfMemoryError

HINT = (  # of c10/cuda/CUDAException.cpp
    "\nSearch for `cudaErrorECCUncorrectable' in https://docs.nvidia.com/cuda/cuda-runtime-api/ for more information."
    "\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be "
    "incorrect.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\n"
)
NCCL_REMOTE = (  # of c10d/NCCLUtils.cpp, as in NVIDIA/nccl#2076
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.hpp:268, remote process exited or there was a "
    "network error, NCCL version 2.21.5\nncclRemoteError: A call failed possibly due to a network error or a remote "
    "process exiting prematurely.\nLast error:\nsocketProgressOpt: Call to recv from 10.0.0.7<33759> failed : "
    "Connection reset by peer"
)


@pytest.mark.parametrize(
    "said",
    [  # cudaGetErrorString
        "uncorrectable ECC error encountered",
        "uncorrectable NVLink error detected during the execution",
        "unspecified launch failure",
        "an illegal memory access was encountered",
        "CUDA-capable device(s) is/are busy or unavailable",
        "no CUDA-capable device is detected",
        "unknown error",
    ],
)
def test_faults_of_a_gpu(said):
    assert accelerator_fault(torch.AcceleratorError(f"CUDA error: {said}{HINT}")) == said


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(handle, ...)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("CUDA driver error: unknown error"),
    ],
)
def test_faults_that_a_library_reports(error):
    assert accelerator_fault(error)


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError(f"CUDA error: device-side assert triggered{HINT}"),
        torch.AcceleratorError(f"CUDA error: no kernel image is available for execution on the device{HINT}"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling `cublasLtMatmul(...)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        torch.AcceleratorError(f"CUDA error: out of memory{HINT}"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("The size of tensor a (3) must match the size of tensor b (4)"),
        IndexError("index out of range in self"),
    ],
)
def test_errors_of_a_program_are_none(error):
    assert accelerator_fault(error) is None


def task_error(cause):
    return ray.exceptions.RayTaskError("step", "Traceback\n", cause).as_instanceof_cause()


def test_they_are_retried_and_errors_of_memory_say_what_to_do():
    failed = stage_error("step", "a learner", task_error(torch.AcceleratorError(f"CUDA error: unknown error{HINT}")))
    assert failed.retryable and failed.cause == "the GPU of a learner failed: unknown error."
    full = stage_error("load", "a learner", task_error(torch.OutOfMemoryError("CUDA out of memory. Tried 1 MiB.\nX")))
    assert full.retryable and "ran out of memory: CUDA out of memory. Tried 1 MiB." in full.cause
    single = stage_error("score", "a learner", task_error(OutOfMemoryError("tried 1 GiB", 900, 64)))
    assert not single.retryable and "900 tokens" in single.cause and "max_model_len" in single.remedy
    bug = stage_error(
        "step", "a learner", task_error(torch.AcceleratorError("CUDA error: device-side assert triggered"))
    )
    assert not bug.retryable and "device-side assert" in bug.cause


@pytest.mark.parametrize("kind", [dist.DistBackendError, dist.DistNetworkError])
def test_nccl_is_quoted_by_name(kind):
    with pytest.raises(PeerLostError) as caught, peers_connected():
        raise kind(NCCL_REMOTE)
    assert "ncclRemoteError: A call failed possibly" in str(caught.value)
    assert "Call to recv from 10.0.0.7<33759> failed : Connection reset by peer" in str(caught.value)


# GPUs that fail again


ECC = torch.AcceleratorError(f"CUDA error: uncorrectable ECC error encountered{HINT}")


def place(node, gpu, uuid="GPU-5d0b4ed6"):
    return Whereabouts(node, "10.0.0.3", 123, 9, (gpu,), uuid)


def test_the_gpu_is_named_and_after_two_faults_in_a_row_its_node_is_avoided(monkeypatch):
    nodes = [{"NodeID": name, "Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0}} for name in ("aa", "bb", "cc")]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    faults, bundle = GpuFaults(), {"CPU": 1.0, "GPU": 1.0}

    first = faults.explain("step", task_error(ECC), 3, place("aa", "1"))
    assert first.retryable and "learner 3 (process 123 on node 10.0.0.3, GPU 1 (GPU-5d0b4ed6))" in first.cause
    assert "uncorrectable ECC error" in first.cause and faults.selector(bundle, 2) is None
    faults.explain("step", task_error(ECC), 0, place("aa", "0"))  # another one
    faults.explain("step", task_error(ECC), 0, place("aa", "1"))
    faults.succeeded()
    faults.explain("step", task_error(ECC), 0, place("aa", "1"))
    assert faults.selector(bundle, 2) is None

    second = faults.explain("step", task_error(ECC), 3, place("aa", "1"))
    assert "2 times in a row" in second.remedy and "ray drain-node --node-id aa" in second.remedy
    assert faults.selector(bundle, 4) == [{"ray.io/node-id": "!in(aa)"}] * 4
    assert validate_label_selector(faults.selector(bundle, 4)[0]) is None  # Ray accepts it
    assert faults.selector(bundle, 5) is None  # the others have no room
    nodes[1]["Alive"] = False
    assert faults.selector(bundle, 3) is None


def test_other_failures_are_explained_as_before():
    failed = GpuFaults().explain("step", task_error(KeyError("x")), 0, place("aa", "1"))
    assert failed.cause.startswith("a learner raised KeyError") and not failed.retryable
