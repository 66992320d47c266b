"""forward_backward in JSON, as older SDKs send it and expect its result, to and from protobuf."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from tandem.cluster.calls.wire import messages
from tandem.rl.datums.datum import DatumError
from tandem.serve.api.bodies.problems import problems_of
from tandem.serve.tinker.wire.requests import Call, SdkBody

_INT32 = 2**31


class JsonChunk(SdkBody):
    type: Literal["encoded_text"] = "encoded_text"
    tokens: list[int]


class JsonModelInput(SdkBody):
    chunks: list[JsonChunk]


class JsonTensor(SdkBody):
    data: list[Annotated[float, Field(allow_inf_nan=True)]]
    dtype: Literal["float32", "int64"]
    shape: list[int] | None = None
    sparse_crow_indices: list[int] | None = None
    sparse_col_indices: list[int] | None = None


class JsonDatum(SdkBody):
    model_input: JsonModelInput
    loss_fn_inputs: dict[str, JsonTensor]


class JsonInput(SdkBody):
    data: list[JsonDatum]
    loss_fn: str
    loss_fn_config: dict[str, float] | None = None


class JsonForwardBackward(Call):
    forward_backward_input: JsonInput
    type: Literal["forward_backward"] = "forward_backward"


class JsonForward(Call):
    forward_input: JsonInput
    type: Literal["forward"] = "forward"


def message_of_json(body: bytes, forward_only: bool) -> Any:
    """Return the protobuf message of a JSON body. Raises DatumError, which names the place."""
    model = JsonForward if forward_only else JsonForwardBackward
    try:
        call = model.model_validate_json(body)
    except ValidationError as error:
        problem = problems_of(error.errors(include_url=False, include_context=False, include_input=False))[0]
        raise DatumError(problem.msg, *(problem.loc or ("body",))) from None
    wanted = call.forward_input if isinstance(call, JsonForward) else call.forward_backward_input
    request = messages.ForwardBackwardRequest(model_id=call.model_id, seq_id=call.seq_id, loss_fn=wanted.loss_fn)
    request.forward_only = forward_only
    request.loss_fn_config.update(wanted.loss_fn_config or {})
    for index, datum in enumerate(wanted.data):
        _fill(request.data.add(), datum, index)
    return request


def _fill(message: Any, datum: JsonDatum, index: int) -> None:
    for position, chunk in enumerate(datum.model_input.chunks):
        if any(not 0 <= token < _INT32 for token in chunk.tokens):
            raise DatumError("has a number that isn't a token id", "data", index, "model_input", "chunks", position)
        message.model_input.add().encoded_text.tokens = np.asarray(chunk.tokens, "<i4").tobytes()
    for name, tensor in datum.loss_fn_inputs.items():
        _fill_tensor(message.loss_fn_inputs[name], tensor, ("data", index, "loss_fn_inputs", name))


def _fill_tensor(message: Any, tensor: JsonTensor, place: tuple[str | int, ...]) -> None:
    is_float = tensor.dtype == "float32"
    values = np.asarray(tensor.data, np.float64)
    if not is_float and not (np.abs(values) < 2**53).all():
        raise DatumError("has a number that isn't an int64", *place)
    content = values.astype("<f4" if is_float else "<i8").tobytes()
    message.dtype = messages.FLOAT32 if is_float else messages.INT64
    try:
        message.shape.extend(tensor.shape or [len(tensor.data)])
        if tensor.sparse_crow_indices is None:
            message.dense = content
        else:
            message.sparse_csr.values = content
            message.sparse_csr.crow_indices = np.asarray(tensor.sparse_crow_indices, "<i8").tobytes()
            message.sparse_csr.col_indices = np.asarray(tensor.sparse_col_indices or [], "<i8").tobytes()
    except (OverflowError, ValueError):
        raise DatumError("has a shape or an index that isn't an int64", *place) from None


def output_as_json(content: bytes) -> dict[str, Any]:
    """Return a ForwardBackwardOutput as older SDKs read it: the outputs of each datum with their numbers in lists."""
    output = messages.ForwardBackwardOutput.FromString(content)
    outputs: list[Mapping[str, Any]] = []
    for record in output.loss_fn_outputs:
        columns = {name: _tensors(column) for name, column in record.fields.items()}
        outputs += [{name: tensors[index] for name, tensors in columns.items()} for index in range(record.num_datums)]
    return {
        "type": "forward_backward",
        "loss_fn_output_type": output.loss_fn_output_type,
        "loss_fn_outputs": outputs,
        "metrics": dict(output.metrics),
    }


def _tensors(column: Any) -> list[dict[str, Any]]:
    """Return each datum's part of a column, which the service writes in float32."""
    values, offsets = np.frombuffer(column.data, "<f4"), np.frombuffer(column.offsets, "<i8") // 4
    trailing = tuple(column.trailing_shape)
    parts = [values[start:stop].reshape(-1, *trailing) for start, stop in pairwise(offsets)]
    return [{"data": part.ravel().tolist(), "dtype": "float32", "shape": list(part.shape)} for part in parts]
