"""Token ids that a client wants to have scored at each position of a prompt, dense or as the rows of a sparse matrix.

Shapes: P prompt tokens, K ids per position; row i is about prompt token i + 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tandem.cluster.engine.samples.sample_body import SampleError, TensorBody

NAME = "target_prompt_logprobs"
MAX_TARGETS = 1 << 21
"""Cells of the dense matrix."""


@dataclass(frozen=True)
class PromptTargets:
    ids: NDArray[np.int64]
    """[P - 1, width]: those of each row, filled up with -1."""
    shape: tuple[int, int]
    """Of the client's matrix."""
    rows: tuple[NDArray[np.int64], NDArray[np.int64]] | None
    """The row pointers and columns of a sparse matrix."""

    @property
    def width(self) -> int:
        return int(self.ids.shape[1])

    def values_of(self, logprobs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the logprobs in the client's layout, given those of `ids`: 0 where nothing was asked for."""
        found: NDArray[np.float32] = np.where(self.ids >= 0, logprobs, np.float32(0))
        if self.rows is None:
            return found.reshape(-1)
        counts = np.diff(self.rows[0])
        return found[np.arange(self.width)[None] < counts[:, None]]


def read_targets(tensor: TensorBody, length: int, vocab_size: int) -> PromptTargets:
    """Return the targets of a prompt of `length` tokens. Raises SampleError."""
    shape = tensor.shape
    if tensor.dtype != "int64" or not all(type(id) is int for id in tensor.data):
        raise SampleError(f"{NAME} must be int64 token ids.")
    if shape is None or len(shape) != 2 or shape[0] != length - 1 or shape[1] < 1:
        raise SampleError(f"{NAME} has shape {shape}; it must have {length - 1} rows, one per prompt token after one.")
    if not all(-1 <= id < vocab_size for id in tensor.data):
        raise SampleError(f"{NAME} has an id outside the vocabulary of {vocab_size} tokens; -1 asks for nothing.")
    if all(id < 0 for id in tensor.data):
        raise SampleError(f"{NAME} names no token id.")
    values = np.asarray(tensor.data, np.int64)
    size = (shape[0], shape[1])
    if tensor.sparse_crow_indices is None and tensor.sparse_col_indices is None:
        if values.size != size[0] * size[1]:
            raise SampleError(f"{NAME} has {values.size} numbers, and its shape is {shape}.")
        return PromptTargets(values.reshape(size), size, None)
    return _sparse(tensor, values, size)


def _sparse(tensor: TensorBody, values: NDArray[np.int64], size: tuple[int, int]) -> PromptTargets:
    try:
        starts = np.asarray(tensor.sparse_crow_indices or (), np.int64)
        columns = np.asarray(tensor.sparse_col_indices or (), np.int64)
    except OverflowError:
        raise SampleError(f"{NAME} has an index beyond 64 bits.") from None
    counts = np.diff(starts)
    fits = starts.size == size[0] + 1 and starts[0] == 0 and starts[-1] == columns.size == values.size
    if not fits or (counts < 0).any() or ((columns < 0) | (columns >= size[1])).any():
        raise SampleError(f"{NAME} has sparse rows that don't fit its values and its shape {list(size)}.")
    width = int(counts.max(initial=1))
    if width * size[0] > MAX_TARGETS:
        raise SampleError(f"{NAME} asks for up to {width} ids at {size[0]} positions, more than {MAX_TARGETS} in all.")
    ids = np.full((size[0], width), -1, np.int64)
    ids[np.repeat(np.arange(size[0]), counts), np.arange(values.size) - np.repeat(starts[:-1], counts)] = values
    return PromptTargets(ids, size, (starts, columns))
