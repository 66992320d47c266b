"""Builders of wire data, and the packing vectors recorded from openpipe-art 0.5.18.

The tokenizer is byte-level BPE with a ChatML template; `<|im_start|>` is 423, `<|im_end|>` (its EOS) 424.
"""

import functools
import json
from typing import Any

from paths import DATA
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from tandem.rl.tokens.tokenizing import ChatTokenizer
from tandem.rl.trajectories import History, TrajectoryGroup

EOS = 424


@functools.cache
def packing_vectors() -> list[dict[str, Any]]:
    return json.loads((DATA / "packing_vectors.json").read_text())["cases"]


def vector(name: str) -> dict[str, Any]:
    return next(case for case in packing_vectors() if case["name"] == name)


ENGINE_RENDERS_OTHERWISE = {"tool_call_final", "developer_role_and_name"}
"""Vectors with a prompt that openpipe-art renders in another way than vLLM: tools in the order of their keys as sent, a
developer message for a template that knows no such role."""


def as_offered(text: str) -> str:
    """Return a rendered text of the vectors with their tool as vLLM passes it to the template."""
    sent = [line for line in text.splitlines() if line.startswith('{"function"')]
    for line in sent:
        text = text.replace(line, json.dumps({"type": "function", "function": json.loads(line)["function"]}))
    return text


@functools.cache
def published_schemas() -> dict[str, Any]:
    """Return the components of the published OpenAPI document."""
    return json.loads((DATA / "serverless_training_openapi.json").read_text())["components"]["schemas"]


def inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    """Return a JSON schema with references resolved and without descriptions, to compare only its rules."""
    if isinstance(schema, list):
        return [inlined(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return inlined(definitions[schema["$ref"].rsplit("/", 1)[1]], definitions)
    return {
        key: inlined(value, definitions)
        for key, value in schema.items()
        if key != "$defs" and not (key == "description" and isinstance(value, str))
    }


def load_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerBase:
    """Return the recorded tokenizer, with another chat template if one is given."""
    tokenizer = AutoTokenizer.from_pretrained(DATA / "tokenizer")
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    return tokenizer


@functools.cache
def chat_tokenizer(chat_template: str | None = None) -> ChatTokenizer:
    return ChatTokenizer(load_tokenizer(chat_template))


def encode(text: str) -> list[int]:
    return chat_tokenizer().encode(text)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def choice(text: str, ids: list[int] | None = None, **extra: Any) -> dict[str, Any]:
    """Return a sampled turn as the engine does: ids as `token_id:N`, token t with logprob -(t + 1) / 8."""
    ids = [*encode(text), EOS] if ids is None else ids
    content = [
        {"token": f"token_id:{id_}", "logprob": -(t + 1) / 8, "top_logprobs": [], "bytes": None}
        for t, id_ in enumerate(ids)
    ]
    return {
        "finish_reason": "stop",
        "index": 0,
        "logprobs": {"content": content, "refusal": None},
        "message": {"role": "assistant", "content": text},
        **extra,
    }


def history(*messages_and_choices: dict[str, Any], **extra: Any) -> History:
    return History.model_validate({"messages_and_choices": list(messages_and_choices), **extra})


def group(*rollouts: tuple[float, list[dict[str, Any]]]) -> TrajectoryGroup:
    """Return a group of trajectories, each given as (reward, messages and choices)."""
    return TrajectoryGroup.model_validate(
        {"trajectories": [{"messages_and_choices": items, "reward": reward} for reward, items in rollouts]}
    )
