"""The protobuf messages of the Tinker API, by their field numbers.

The table below is the definition; protobuf's own runtime makes classes of it, so no code is generated. The pool is
their own: a program that also has the client's classes can load both.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE = "tandem.tinker"
# name: (number, type); "*" repeated, "?" optional, "name|of" one of a group, "a->b" a map.
_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "SampleResponse": {
        "sequences": (1, "*SampledSequence"),
        "prompt_logprobs": (2, "?bytes"),
        "topk_prompt_logprobs": (3, "?TopkLogprobs"),
        "prompt_cache_hit_tokens": (4, "int32"),
        "target_prompt_logprobs": (5, "?Tensor"),
        "prompt_alt_tokens": (6, "?PromptAltTokens"),
    },
    "SampledSequence": {
        "stop_reason": (1, "StopReason"),
        "tokens": (2, "bytes"),
        "logprobs": (3, "?bytes"),
        "topk_sampled_logprobs": (4, "?TopkLogprobs"),
    },
    "TopkLogprobs": {"token_ids": (1, "bytes"), "logprobs": (2, "bytes"), "k": (3, "uint32"), "length": (4, "uint32")},
    "PromptAltTokens": {"tokens": (1, "Tensor"), "logprobs": (2, "Tensor")},
    "Tensor": {"dense": (1, "|bytes"), "sparse_csr": (2, "|SparseCsr"), "dtype": (3, "DType"), "shape": (4, "*int64")},
    "SparseCsr": {"values": (1, "bytes"), "crow_indices": (2, "bytes"), "col_indices": (3, "bytes")},
    "BatchedTensor": {
        "data": (1, "bytes"),
        "offsets": (2, "bytes"),
        "dtype": (3, "DType"),
        "trailing_shape": (4, "*int64"),
    },
    "ArrayRecord": {"type_tag": (1, "string"), "fields": (2, "string->BatchedTensor"), "num_datums": (3, "int64")},
    "ForwardBackwardOutput": {
        "loss_fn_output_type": (1, "string"),
        "loss_fn_outputs": (2, "*ArrayRecord"),
        "metrics": (3, "string->double"),
    },
    "ForwardBackwardRequest": {
        "model_id": (1, "string"),
        "seq_id": (2, "int32"),
        "data": (3, "*Datum"),
        "loss_fn": (4, "string"),
        "loss_fn_config": (5, "string->double"),
        "forward_only": (6, "bool"),
        "loss_fn_config_v2": (7, "string->LossConfigValue"),
    },
    "LossConfigValue": {"number": (1, "|double"), "text": (2, "|string")},
    "Datum": {
        "model_input": (1, "*Chunk"),
        "loss_fn_inputs": (2, "string->Tensor"),
        "model_input_spans": (3, "*ProvenanceSpan"),
        "loss_fn_input_spans": (4, "*ProvenanceSpan"),
    },
    "ProvenanceSpan": {"prompt_tokens": (1, "|TokenSpan"), "sampled_tokens": (2, "|TokenSpan")},
    "TokenSpan": {"sequence_id": (1, "string"), "offset": (2, "int64"), "length": (3, "int64")},
    "Chunk": {"encoded_text": (1, "|EncodedTextChunk"), "image": (2, "|ImageChunk"), "dmel": (3, "|DmelChunk")},
    "EncodedTextChunk": {"tokens": (1, "bytes")},
    "ImageChunk": {"data": (1, "bytes"), "format": (2, "string"), "expected_tokens": (3, "?int32")},
    "DmelChunk": {"dmel": (1, "bytes")},
}
_ENUMS = {
    "StopReason": ("STOP_REASON_STOP", "STOP_REASON_LENGTH"),
    "DType": ("DTYPE_UNSPECIFIED", "DTYPE_FLOAT32", "DTYPE_INT64", "DTYPE_INT32", "DTYPE_BFLOAT16"),
}
_Field = descriptor_pb2.FieldDescriptorProto


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(name="tandem_tinker.proto", package=_PACKAGE, syntax="proto3")
    for name, values in _ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    for name, columns in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for column, (number, kind) in columns.items():
            _add_field(message, column, number, kind)
        for field in message.field:  # proto3's optional is a group of its own, after all others
            if field.proto3_optional:
                field.oneof_index = len(message.oneof_decl)
                message.oneof_decl.add(name=f"_{field.name}")
    return file


def _add_field(message: descriptor_pb2.DescriptorProto, name: str, number: int, kind: str) -> None:
    field = message.field.add(name=name, number=number, label=_Field.LABEL_OPTIONAL)
    key, is_map, value = kind.partition("->")
    if is_map:
        entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
        entry.options.map_entry = True
        _add_field(entry, "key", 1, key)
        _add_field(entry, "value", 2, value)
        field.label, field.type = _Field.LABEL_REPEATED, _Field.TYPE_MESSAGE
        field.type_name = f".{_PACKAGE}.{message.name}.{entry.name}"
        return
    match kind[0]:
        case "*":
            field.label = _Field.LABEL_REPEATED
        case "?":
            field.proto3_optional = True
        case "|":
            if not message.oneof_decl:
                message.oneof_decl.add(name="kind")
            field.oneof_index = 0
    kind = kind.lstrip("*?|")
    if kind in _MESSAGES or kind in _ENUMS:
        field.type = _Field.TYPE_ENUM if kind in _ENUMS else _Field.TYPE_MESSAGE
        field.type_name = f".{_PACKAGE}.{kind}"
    else:
        field.type = _Field.Type.Value(f"TYPE_{kind.upper()}")


_classes = message_factory.GetMessages([_file()], pool=descriptor_pool.DescriptorPool())
ForwardBackwardRequest: Any = _classes[f"{_PACKAGE}.ForwardBackwardRequest"]
ForwardBackwardOutput: Any = _classes[f"{_PACKAGE}.ForwardBackwardOutput"]
SampleResponse: Any = _classes[f"{_PACKAGE}.SampleResponse"]
STOP, LENGTH = 0, 1
FLOAT32, INT64, INT32, BFLOAT16 = 1, 2, 3, 4
