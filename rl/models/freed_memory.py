"""Keep the memory that a process frees, instead of returning it to the operating system.

A gradient step allocates and frees the same large tensors again and again. By default glibc returns them, so the system
clears new pages for each one (about 10,000 page faults per row of 1,450 tokens).
"""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_MIB = 2**20


def keep_freed_memory(keep: bool = True) -> None:
    """Let the process keep up to 2 GiB of freed memory; with `keep` false, only as much as glibc keeps by default.

    Does nothing with another C library.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 1024 * _MIB if keep else 32 * _MIB)
        mallopt(_M_TRIM_THRESHOLD, 2048 * _MIB - 1 if keep else 64 * _MIB)
