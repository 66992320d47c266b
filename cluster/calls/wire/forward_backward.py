"""Bodies of forward_backward: protobuf to a call, and the losses' outputs to protobuf."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import zstandard
from google.protobuf.message import DecodeError
from torch import Tensor

from tandem.cluster.calls.wire import messages
from tandem.rl.datums.datum import TARGETS, Call, Datum, DatumError

MAX_CELLS = 1 << 26
"""Of all tensors of a call once they are dense: a few bytes of sparse ones could ask for any size."""
MAX_NAME = 100
"""Characters of a name, which errors repeat."""
SLICE_BYTES = 2048
"""Of a zstd frame, decompressed at once: zeros make 64 MiB of them."""
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
"""No ForwardBackwardRequest begins with this byte: it would be a number in place of `loss_fn_config`."""
_NUMPY: dict[int, np.dtype[Any]] = {
    messages.FLOAT32: np.dtype("<f4"),
    messages.INT64: np.dtype("<i8"),
    messages.INT32: np.dtype("<i4"),
    messages.BFLOAT16: np.dtype("<u2"),
}
_PLAIN = {messages.FLOAT32: torch.float32, messages.INT64: torch.int64} if sys.byteorder == "little" else {}


@dataclass(frozen=True)
class ForwardBackward:
    model_id: str
    seq_id: int
    call: Call
    forward_only: bool
    """Return logprobs; accumulate no gradient."""


def decompressed(body: bytes, max_bytes: int) -> bytes:
    """Return the content of a zstd frame. Raises DatumError if it is broken, or longer than `max_bytes`."""
    frame, parts, size = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj(), list[bytes](), 0
    end = 0
    while end < len(body) and not frame.eof:
        try:
            parts.append(frame.decompress(body[end : end + SLICE_BYTES]))
        except zstandard.ZstdError as error:
            raise DatumError(f"isn't a zstd frame ({error}); send the body without Content-Encoding", "body") from error
        end, size = end + SLICE_BYTES, size + len(parts[-1])
        if size > max_bytes:
            raise DatumError(f"has more than {max_bytes} bytes once it is decompressed; send fewer datums", "body")
    if not frame.eof:
        raise DatumError("is a zstd frame without its end; send all of it", "body")
    if frame.unused_data or end < len(body):
        raise DatumError("has bytes after its zstd frame; send one frame", "body")
    return b"".join(parts)


def body_content(body: bytes, max_bytes: int) -> bytes:
    """Return the protobuf message of a stored body, which may be a zstd frame. Raises DatumError as `decompressed`."""
    return decompressed(body, max_bytes) if body.startswith(ZSTD_MAGIC) else body


def read_forward_backward(body: bytes) -> ForwardBackward:
    """Return the request of a protobuf body. Raises DatumError, which names the place."""
    return forward_backward_of(parsed(body))


def parsed(body: bytes) -> Any:
    """Return the message of a protobuf body, with numbers that may be anything. Raises DatumError."""
    try:
        return messages.ForwardBackwardRequest.FromString(body)
    except DecodeError as error:
        raise DatumError("isn't a ForwardBackwardRequest in protobuf; it may be truncated", "body") from error


def forward_backward_of(request: Any) -> ForwardBackward:
    """Return the request of a message. Raises DatumError, which names the place."""
    if request.seq_id < 1:
        raise DatumError(f"is {request.seq_id}; the first call of a model has 1", "seq_id")
    _check_name(request.loss_fn, "loss_fn")
    datums, cells = list[Datum](), 0
    for index, message in enumerate(request.data):
        datum = _datum(message, index)
        datums.append(datum)
        cells += datum.targets.numel() + sum(values.numel() for values in datum.values.values())
        if cells > MAX_CELLS:
            raise DatumError(f"has, with the datums before it, more than {MAX_CELLS} cells; send fewer", "data", index)
    call = Call(datums, request.loss_fn, _options(request))
    return ForwardBackward(request.model_id, request.seq_id, call, request.forward_only)


def _options(request: Any) -> dict[str, float]:
    options = dict(request.loss_fn_config)
    for name, value in request.loss_fn_config_v2.items():
        _check_name(name, "loss_fn_config")
        if value.WhichOneof("kind") != "number":
            raise DatumError(f"is {value.text[:MAX_NAME]!r}; it must be a number", "loss_fn_config", name)
        options[name] = value.number
    for name in options:
        _check_name(name, "loss_fn_config")
    return options


def _check_name(name: str, *place: str | int) -> None:
    if len(name) > MAX_NAME:
        raise DatumError(f"has a name of {len(name)} characters; no name has more than {MAX_NAME}", *place)


def _datum(message: Any, index: int) -> Datum:
    place = ("data", index, "loss_fn_inputs")
    for name in message.loss_fn_inputs:
        _check_name(name, *place)
    inputs = {name: _tensor(tensor, *place, name) for name, tensor in message.loss_fn_inputs.items()}
    targets = inputs.pop(TARGETS, None)
    if targets is None:
        raise DatumError("is missing", *place, TARGETS)
    if targets.is_floating_point():
        raise DatumError("has floating-point numbers; token ids are integers", *place, TARGETS)
    return Datum(_token_ids(message.model_input, index), targets, {name: t.float() for name, t in inputs.items()})


def _token_ids(chunks: Sequence[Any], index: int) -> Tensor:
    ids = []
    for position, chunk in enumerate(chunks):
        place = ("data", index, "model_input", "chunks", position)
        if not chunk.HasField("encoded_text"):
            kind = chunk.WhichOneof("kind") or "empty"
            raise DatumError(f"is {kind}; only encoded_text can be trained here", *place)
        ids.append(_numbers(chunk.encoded_text.tokens, np.dtype("<i4"), *place, "tokens"))
    if not ids:
        return torch.empty(0, dtype=torch.int64)
    return torch.from_numpy((ids[0] if len(ids) == 1 else np.concatenate(ids)).astype(np.int64))


def _tensor(message: Any, *place: str | int) -> Tensor:
    if (plain := _PLAIN.get(message.dtype)) and len(message.shape) == 1:  # most are like this: take the short way
        content = message.dense
        if content and len(content) == message.shape[0] * plain.itemsize:
            return torch.frombuffer(bytearray(content), dtype=plain)
    dtype = _NUMPY.get(message.dtype)
    if dtype is None:
        raise DatumError(f"has dtype {message.dtype}; send float32 or int64", *place)
    shape = list(message.shape)
    if len(shape) > 2:
        raise DatumError(f"has {len(shape)} dimensions; it may have one or two", *place)
    if min(shape, default=0) < 0 or max(shape, default=0) > MAX_CELLS or math.prod(shape) > MAX_CELLS:
        raise DatumError(f"has shape {shape}; at most {MAX_CELLS} cells are possible", *place)
    if message.HasField("sparse_csr"):
        return _dense(message, dtype, shape, *place)
    values = _widened(_numbers(message.dense, dtype, *place), message.dtype)
    if shape and values.size != math.prod(shape):
        raise DatumError(f"has {values.size} numbers, and its shape is {shape}", *place)
    return torch.from_numpy(values.reshape(shape) if len(shape) == 2 else values)


def _dense(message: Any, dtype: np.dtype[Any], shape: list[int], *place: str | int) -> Tensor:
    """Return a sparse tensor with zeros in the cells that it doesn't list."""
    csr = message.sparse_csr
    values = _widened(_numbers(csr.values, dtype, *place, "values"), message.dtype)
    rows = _numbers(csr.crow_indices, np.dtype("<i8"), *place, "crow_indices")
    columns = _numbers(csr.col_indices, np.dtype("<i8"), *place, "col_indices")
    if len(shape) != 2:
        raise DatumError(f"is sparse and has shape {shape}; it needs two dimensions", *place)
    counts = np.diff(rows)
    is_whole = rows.size == shape[0] + 1 and rows[:1].tolist() == [0] and rows[-1] == columns.size == values.size
    if not is_whole or (counts < 0).any():
        raise DatumError("has rows that don't fit its values", *place, "crow_indices")
    if ((columns < 0) | (columns >= shape[1])).any():
        raise DatumError(f"has a column outside 0 to {shape[1] - 1}", *place, "col_indices")
    cells = np.repeat(np.arange(shape[0]), counts) * shape[1] + columns
    known, uses = np.unique(cells, return_counts=True)
    if (uses > 1).any():
        row, column = divmod(int(known[uses > 1][0]), shape[1])
        raise DatumError(f"has column {column} of row {row} more than once; send each cell once", *place, "col_indices")
    dense = np.zeros(math.prod(shape), values.dtype)
    dense[cells] = values
    return torch.from_numpy(dense.reshape(shape))


def _numbers(content: bytes, dtype: np.dtype[Any], *place: str | int) -> np.ndarray[Any, Any]:
    if len(content) % dtype.itemsize:
        raise DatumError(f"has {len(content)} bytes, which isn't a multiple of {dtype.itemsize}", *place)
    return np.frombuffer(content, dtype)


def _widened(values: np.ndarray[Any, Any], dtype: int) -> np.ndarray[Any, Any]:
    """Return writable numbers: bfloat16 as float32, int32 as int64."""
    if dtype == messages.BFLOAT16:  # the upper half of a float32
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.int64) if dtype == messages.INT32 else values.copy()


def forward_backward_output(logprobs: Sequence[Tensor], metrics: Mapping[str, float]) -> bytes:
    """Return the protobuf answer.

    Args:
        logprobs: of each datum in order, float32 [N] or [N, K]. Neighbours of equal K share a record.
        metrics: each name ends in ":" and how it is merged over calls, like "loss:sum".
    """
    output = messages.ForwardBackwardOutput(loss_fn_output_type="ArrayRecord")
    output.metrics.update(metrics)
    start = 0
    for stop in range(1, len(logprobs) + 1):
        if stop == len(logprobs) or logprobs[stop].shape[1:] != logprobs[start].shape[1:]:
            _add_record(output, logprobs[start:stop])
            start = stop
    content: bytes = output.SerializeToString()
    return content


def _add_record(output: Any, logprobs: Sequence[Tensor]) -> None:
    record = output.loss_fn_outputs.add(num_datums=len(logprobs))
    column = record.fields["logprobs"]
    arrays = [own.detach().float().cpu().numpy() for own in logprobs]
    column.data = b"".join(array.tobytes() for array in arrays)
    column.offsets = np.cumsum([0, *(array.nbytes for array in arrays)], dtype="<i8").tobytes()
    column.dtype = messages.FLOAT32
    column.trailing_shape.extend(arrays[0].shape[1:])
