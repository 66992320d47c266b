"""Unknown fields of training data: which ones are rejected, and which ones a job reports.

Clients attach notes of their own to groups, trajectories and choices, so unknown fields are kept. But data that would
train if it had another name must not be left out in silence: turns in a field that isn't read, sampled tokens without
their logprobs, weights and advantages that another trainer would use. Those are rejected with their place.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, Literal

from pydantic import ValidationError, ValidationInfo
from pydantic_core import InitErrorDetails, PydanticCustomError

Part = Literal["group", "trajectory", "history", "choice", "message", "exchange", "exchanges"]

ERROR_TYPE = "unread_data"
FOR_LOG = {"for_log": True}
"""The validation context of trajectories that are logged, not trained: a log may carry any data."""
SAMPLED_DATA = ("logprobs", "token_ids", "token_logprobs")
"""Fields of a choice that aren't read on a message."""
NOTES: dict[Part, frozenset[str]] = {
    "group": frozenset({"exceptions", "metadata", "metrics", "logs"}),
    "trajectory": frozenset({"auto_metrics"}),
    "history": frozenset(),
    "choice": frozenset(
        {"stop_reason", "matched_stop", "routed_experts", "token_offsets", "prompt_logprobs"}
        | {"prompt_policy_token_spans"}
    ),
    "message": frozenset(),
    "exchange": frozenset(),
    "exchanges": frozenset(),
}
"""Unknown fields that clients and engines usually attach and that have no meaning for training."""
CHANGES_TRAINING = frozenset(
    {"advantage", "advantages", "reward", "rewards", "weight", "weights", "loss_weight", "loss_mask", "assistant_mask"}
    | {"assistant_masks", "mask", "train", "trainable", "old_logprobs", "ref_logprobs", "baseline"}
)
"""Fields by which other trainers weigh, mask or reward a part of the data."""
NEUTRAL = {"weight": 1, "loss_weight": 1, "train": True, "trainable": True}
"""Values of such fields that ask for what happens anyway."""
READ: dict[Part, tuple[str, ...]] = {
    "group": ("trajectories",),
    "trajectory": (
        *("messages_and_choices", "tools", "additional_histories", "exchanges", "reward", "initial_policy_version"),
    ),
    "history": ("messages_and_choices", "tools", "chat_template_kwargs"),
    "choice": ("logprobs", "message", "token_ids", "prompt_token_ids", "policy_version"),
    "message": (),
    "exchange": ("start_time", "end_time", "request", "response"),
    "exchanges": (),
}
"""Fields that matter for training: a name much like one of them is a mistake."""
SIMILAR = 0.87
_NAMES_OF_TURNS = re.compile(
    r"token|logprob|message|choice|turn|histor|conversation|exchange|completion|prompt|response|transcript|dialog|step"
)
_KEYS_OF_TURNS = ("role", "completion", "finish_reason")
_MAX_DEPTH = 6


def reject_unread(part: Part, extra: Mapping[str, Any] | None, trains_nothing: bool = False) -> None:
    """Raise a ValidationError at each unknown field that carries data for training.

    Args:
        part: the object that has the fields.
        extra: its unknown fields.
        trains_nothing: the object has no turns, or, as a choice, no logprobs; so any field with such data counts.
    """
    faults = [
        ((name,), reason)
        for name, value in (extra or {}).items()
        if not _is_empty(value) and (reason := _reason(part, name, value, trains_nothing)) is not None
    ]
    if faults:
        raise _faults(part, faults)


def reject_part(part: Part, name: str, reason: str) -> None:
    """Raise a ValidationError at a field of an object."""
    raise _faults(part, [((name,), reason)])


def reject_other_logprobs(logprobs: Mapping[str, Any]) -> None:
    """Raise a ValidationError at `logprobs` of a choice that have no entries but data in another format."""
    if not _is_empty(logprobs):
        reason = "has no entries in content; send logprobs as chat completions return them, in logprobs.content"
        raise _faults("choice", [(("logprobs", next(k for k in logprobs if not _is_empty(logprobs[k]))), reason)])


def is_for_log(info: ValidationInfo) -> bool:
    return info.context == FOR_LOG


def changes_training(fields: Mapping[str, Any]) -> str | None:
    """Return the first field that asks for another training than the one that happens, if any."""
    return next((name for name, value in fields.items() if _changes_training(_plain(name), value)), None)


def reported_names(part: Part, extra: Mapping[str, Any] | None) -> Iterator[str]:
    """Iterate over the unknown fields with a value that a job should report as ignored, like `trajectory.run`."""
    for name, value in (extra or {}).items():
        if name not in NOTES[part] and not _is_empty(value):
            yield f"{part}.{name}"


def _faults(part: Part, faults: Iterable[tuple[tuple[str, ...], str]]) -> ValidationError:
    details = [
        InitErrorDetails(type=PydanticCustomError(ERROR_TYPE, "{reason}", {"reason": reason}), loc=loc, input=None)
        for loc, reason in faults
    ]
    return ValidationError.from_exception_data(part, details)


def _reason(part: Part, name: str, value: Any, trains_nothing: bool) -> str | None:
    """Return what is wrong with a field and what to do, or None for a harmless one."""
    if name == "exchanges":
        return "isn't read here, only on a trajectory; send it there"
    if part == "exchanges":
        return (
            "isn't a protocol that can be trained; send exchanges under chat_completions, completions, responses or "
            "messages"
        )
    if part == "message":
        return "isn't read on a message, only on a choice; send the choice as the engine returned it"
    if name in NOTES[part]:
        return None
    plain = _plain(name)
    if similar := get_close_matches(plain, READ[part], n=1, cutoff=SIMILAR):
        return f"isn't read, it looks like {similar[0]}; send it under that name"
    if _changes_training(plain, value):
        return "isn't read here, so it wouldn't change the training as it says; leave it out"
    if not trains_nothing:
        return None
    if part == "choice":
        is_data = isinstance(value, (list, dict)) and ("logprob" in plain or plain in ("tokens", "output_tokens"))
        return "isn't read, and the choice has no logprobs; send them as logprobs.content" if is_data else None
    if _holds_turns(plain, value) and isinstance(value, (list, dict)):
        return "isn't read, and nothing else here can be trained; send the turns as messages_and_choices or exchanges"
    return None


def _changes_training(plain: str, value: Any) -> bool:
    return plain in CHANGES_TRAINING and not _is_empty(value) and value != NEUTRAL.get(plain)


def _plain(name: str) -> str:
    """Return the name in snake case, for comparison."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("-", "_").strip("_").lower()


def _is_empty(value: Any) -> bool:
    """True for a value without data, like null, "" or {"chat": []}."""
    if isinstance(value, Mapping):
        return all(map(_is_empty, value.values()))
    return value is None or (isinstance(value, (str, list)) and not value)


def _holds_turns(name: str, value: Any, depth: int = _MAX_DEPTH) -> bool:
    """True if the value of a field looks like turns, by its name or by the names inside it."""
    if name in _KEYS_OF_TURNS:
        return True
    if not isinstance(value, (list, dict)) or depth == 0:
        return False
    if value and _NAMES_OF_TURNS.search(name):
        return True
    inside = value.items() if isinstance(value, dict) else (("", item) for item in value)
    return any(_holds_turns(key, item, depth - 1) for key, item in inside)
