"""Cut the logprobs of choices out of the JSON of a trajectory group, because they are most of its bytes.

Pydantic makes several objects of each token's entry, which takes longer than all the rest. Here the entries become
columns, by msgspec, and pydantic validates what is left. Only entries that have exactly the usual fields are cut, and
pydantic would accept each of them; all others stay where they are.
"""

from __future__ import annotations

import secrets

import msgspec
import numpy as np

from tandem.rl.tokens.token_columns import CutLogprobs, TokenColumns


class _TopLogprob(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    token: str
    logprob: float
    bytes: list[int] | None = None


class _Entry(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    token: str
    logprob: float
    top_logprobs: list[_TopLogprob]
    bytes: list[int] | None = None


class _Logprobs(msgspec.Struct, gc=False, forbid_unknown_fields=True):
    content: list[_Entry] | None = None
    refusal: list[_Entry] | None = None


class _Turn(msgspec.Struct, gc=False):
    logprobs: msgspec.Raw = msgspec.Raw()
    finish_reason: msgspec.Raw = msgspec.Raw()
    message: msgspec.Raw = msgspec.Raw()


class _History(msgspec.Struct, gc=False):
    messages_and_choices: list[_Turn]


class _Answer(msgspec.Struct, gc=False):
    choices: list[_Turn] = []


class _Exchange(msgspec.Struct, gc=False):
    response: _Answer = msgspec.field(default_factory=_Answer)


class _Exchanges(msgspec.Struct, gc=False):
    chat_completions: list[_Exchange] = []


class _Trajectory(msgspec.Struct, gc=False):
    messages_and_choices: list[_Turn] = []
    additional_histories: list[_History] = []
    exchanges: _Exchanges | None = None


class _Group(msgspec.Struct, gc=False):
    trajectories: list[_Trajectory] = []


_GROUP = msgspec.json.Decoder(_Group)
_LOGPROBS = msgspec.json.Decoder(_Logprobs)
_FAULTS = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def cut_logprobs(group: bytes) -> tuple[bytes, CutLogprobs]:
    """Return the JSON of a group without the logprobs of its choices, and these.

    A fault of the group isn't reported here; it is still in the JSON that is returned.
    """
    columns: list[TokenColumns] = []
    cut = CutLogprobs(f"logprobs {secrets.randbits(128)}", columns)
    try:
        found = _GROUP.decode(group)
    except _FAULTS:
        return group, cut
    parts, end, start_of_group = list[bytes](), 0, address_of(group)
    for turn in _turns(found):
        if (own := _columns(turn)) is None:
            continue
        start = address_of(turn.logprobs) - start_of_group
        parts += group[end:start], b'null, "%s": %d' % (cut.key.encode(), len(columns))
        end = start + memoryview(turn.logprobs).nbytes
        columns.append(own)
    return b"".join((*parts, group[end:])), cut


def _turns(group: _Group) -> list[_Turn]:
    found: list[_Turn] = []
    for trajectory in group.trajectories:
        found += trajectory.messages_and_choices
        for history in trajectory.additional_histories:
            found += history.messages_and_choices
        for exchange in trajectory.exchanges.chat_completions if trajectory.exchanges else ():
            found += exchange.response.choices
    return found


def _columns(turn: _Turn) -> TokenColumns | None:
    """Return the columns of a choice; None for another turn, and for logprobs that have to stay in the JSON."""
    if not (turn.finish_reason and turn.message and turn.logprobs):
        return None
    try:
        logprobs = _LOGPROBS.decode(turn.logprobs)
    except _FAULTS:
        return None
    entries = logprobs.content or logprobs.refusal
    if not entries:
        return None
    return TokenColumns(
        "content" if logprobs.content else "refusal",
        [entry.token for entry in entries],
        [entry.logprob for entry in entries],
        [entry.bytes for entry in entries],
    )


def address_of(view: bytes | msgspec.Raw) -> int:
    """Return where the bytes lie in memory: a Raw is a view of the JSON that it was found in."""
    address: int = np.frombuffer(view, np.uint8).__array_interface__["data"][0]
    return address
