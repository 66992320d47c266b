"""Addresses of checkpoints, tinker://RUN/KIND/NAME, and ids of requests."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, get_args

from tandem.serve.errors import BadRequestError, NotFoundError, Problem
from tandem.serve.names import NAME, NAME_RULE, quoted

Kind = Literal["weights", "sampler_weights", "external_weights"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_PATH = re.compile(rf"tinker://([^/]+)/({'|'.join(KINDS)})/([^/]+)")
_STEP = re.compile(r"step(0|[1-9][0-9]{0,8})")
_CALL = re.compile(r"call/([^/]+)/(0|[1-9][0-9]{0,9})")
_UNLOAD = re.compile(r"unload/([^/]+)")


@dataclass(frozen=True)
class CheckpointPath:
    """A checkpoint by its run, or a version of a model by the model's id."""

    owner: str
    kind: Kind
    name: str

    @property
    def step(self) -> int | None:
        """The version's step that the name means if the owner is a model."""
        found = _STEP.fullmatch(self.name)
        return int(found[1]) if found else None

    def __str__(self) -> str:
        return f"tinker://{self.owner}/{self.kind}/{self.name}"


def parse_path(path: str, place: str = "path") -> CheckpointPath:
    """Return the parts of an address. Raises BadRequestError; `place` is the field of the request that has it."""
    found = _PATH.fullmatch(path)
    if found is None:
        message = (
            f"{quoted(path)} isn't a checkpoint's address. Send tinker://RUN/weights/NAME, "
            "tinker://RUN/sampler_weights/NAME, tinker://RUN/external_weights/NAME, or, for a version of a model, "
            "tinker://MODEL_ID/sampler_weights/stepN"
        )
        raise BadRequestError([Problem(("body", place), message)], "invalid_tinker_path")
    return CheckpointPath(found[1], kind_of(found[2]), found[3])


def kind_of(text: str) -> Kind:
    """Return a part of an address, or of a row, that is a kind."""
    return next(kind for kind in KINDS if kind == text)


def check_name(name: str, place: str = "path") -> str:
    """Return the name of a new checkpoint. Raises BadRequestError."""
    if NAME.fullmatch(name) is None:
        message = f"{quoted(name)} can't name a checkpoint: send {NAME_RULE}"
        raise BadRequestError([Problem(("body", place), message)], "invalid_checkpoint_name")
    return name


def run_id(session_id: str, model_seq_id: int) -> str:
    return f"{session_id}:train:{model_seq_id}"


def sampler_id(session_id: str, seq: int) -> str:
    return f"{session_id}:sample:{seq}"


def call_request_id(run_id: str, seq: int) -> str:
    """Return the id by which a client asks for a call's result; that of the run's creation for call 0."""
    return f"call/{run_id}/{seq}"


def unload_request_id(run_id: str) -> str:
    return f"unload/{run_id}"


def parse_request_id(request_id: str) -> tuple[str, int | None]:
    """Return the run and the number of its call; None for its unloading. Raises NotFoundError."""
    if found := _CALL.fullmatch(request_id):
        return found[1], int(found[2])
    if found := _UNLOAD.fullmatch(request_id):
        return found[1], None
    raise no_request(request_id)


def no_request(request_id: str) -> NotFoundError:
    sentence = f"There is no request {quoted(request_id)}: this service gave no such id."
    return NotFoundError(sentence, "request_not_found", "request_id")
