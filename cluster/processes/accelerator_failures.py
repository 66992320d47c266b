"""Errors of a GPU, or of the network between GPUs, told from those of a program.

torch raises them as AcceleratorError, or as RuntimeError with a text of CUDA's own. They are told by name and text
and not by class, because this is also asked in processes that haven't loaded torch.
"""

from __future__ import annotations

import re

ACCELERATOR_ERROR = "AcceleratorError"  # torch/include/c10/util/Exception.h: c10::AcceleratorError in Python
_ERROR = re.compile(r"\b(?:CUDA|CUDA driver|HIP|cuDNN|cuBLAS) error: *(?P<said>[^\n]+)")
"""c10/cuda/CUDAException.cpp ("CUDA error: " and cudaGetErrorString), c10/cuda/driver_api.h ("CUDA driver error: "),
ATen/cuda/Exceptions.h ("CUDA error: CUBLAS_STATUS_... when calling", "cuDNN error: CUDNN_STATUS_...")."""
_OF_THE_PROGRAM = re.compile(
    r"device-side assert triggered"  # cudaErrorAssert: an index out of range in a kernel
    r"|no kernel image is available|invalid device function|PTX"  # a build without this GPU's architecture
    r"|driver version is insufficient|invalid device ordinal|invalid argument|invalid configuration"
    r"|_STATUS_(NOT_SUPPORTED|INVALID_VALUE|BAD_PARAM|ARCH_MISMATCH|LICENSE_ERROR)"
)
_NCCL = re.compile(r"(?P<name>nccl\w+): (?P<said>[^\n]+)(?:\nLast error:\s*(?P<last>[^\n]+))?")
"""torch/csrc/distributed/c10d/NCCLUtils.cpp: ncclGetErrorWithVersion, getNcclErrorDetailStr, "Last error:"."""


def accelerator_fault(error: BaseException) -> str | None:
    """Return what CUDA says, if the error is one of a GPU: another GPU, or a new process, may not have it.

    None for other errors, also for those that CUDA reports about the program or its installation. After such an error
    the process can't use its GPU any more.
    """
    said = _ERROR.search(str(error))
    if type(error).__name__ != ACCELERATOR_ERROR and not said:
        return None
    text = said["said"].strip() if said else str(error).strip().partition("\n")[0]
    return None if _OF_THE_PROGRAM.search(text) or "out of memory" in text or "ALLOC_FAILED" in text else text


def connection_fault(error: BaseException) -> str:
    """Return what broke a connection between learners, in one sentence: NCCL's names, or the first sentence."""
    said = str(error)
    if found := _NCCL.search(said):
        last = f" ({found['last'].strip()})" if found["last"] else ""
        return f"{found['name']}: {found['said'].strip().rstrip('.')}{last}"
    return re.sub(r"^\[[^\]]*\]\s*", "", said).partition(". ")[0]
