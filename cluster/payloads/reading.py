"""Read trajectory groups from stored request bodies, one at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import IO, Any, TypedDict

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.errors import ArtifactError
from tandem.cluster.payloads.compressed import decompressed
from tandem.cluster.payloads.cut_logprobs import cut_logprobs
from tandem.cluster.payloads.json_splitting import JsonSplitter
from tandem.cluster.payloads.strict_json import not_finite_place
from tandem.rl.errors import RLError
from tandem.rl.trajectories import TrajectoryGroup
from tandem.rl.unread_fields import FOR_LOG

MANY_FAULTS = 1000
_GROUP = TypeAdapter(TrajectoryGroup)


class FaultDetails(TypedDict):
    """A fault in pydantic's format, at `loc` of the payload. Type not_finite: NaN or an infinity, not valid in JSON."""

    loc: tuple[str | int, ...]
    msg: str
    type: str


class PayloadError(RLError, ValueError):
    """Invalid trajectory groups, with the place of every fault."""

    def __init__(self, faults: Sequence[FaultDetails]):
        super().__init__(faults)
        self.faults = faults

    def __str__(self) -> str:
        first = self.faults[0]
        more = f" (and {len(self.faults) - 1} more faults)" if len(self.faults) > 1 else ""
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}{more}"


def read_groups(
    artifacts: Artifacts, key: str, for_log: bool = False, policy: str | None = None
) -> Iterator[TrajectoryGroup]:
    """Yield the trajectory groups of a stored body (JSON, zstd), with one in memory at a time.

    Groups that are only logged may carry data in fields that training doesn't read. `policy` is the name of the trained
    model, which tells its exchanges from those of other models.

    Raises PayloadError at the first invalid group, with the faults of all groups (the first thousand or so), and
    ArtifactError if the body is missing or damaged.
    """
    return groups_of(read_elements(artifacts, key), for_log, policy)


def groups_of(
    elements: Iterable[tuple[int, bytes]], for_log: bool = False, policy: str | None = None
) -> Iterator[TrajectoryGroup]:
    """Yield the groups of `read_elements`, as `read_groups` does."""
    faults: list[FaultDetails] = []
    for index, (_, element) in enumerate(elements):
        group = _parse(element, index, faults, FOR_LOG if for_log else None)
        if group is not None and not faults:
            for exchanges in (trajectory.exchanges for trajectory in group.trajectories):
                if exchanges is not None and policy is not None:
                    exchanges.of_policy(policy)
            yield group
        elif len(faults) > MANY_FAULTS:
            break
    if faults:
        raise PayloadError(faults)


def read_group(
    artifacts: Artifacts, key: str, index: int, for_log: bool = False, policy: str | None = None
) -> TrajectoryGroup | None:
    """Return one trajectory group of a stored body, without parsing those before; None if there are fewer groups.

    Raises as `read_groups` does.
    """
    found = next(islice(read_elements(artifacts, key), index, None), None)
    if found is None:
        return None
    _, element = found
    faults: list[FaultDetails] = []
    group = _parse(element, index, faults, FOR_LOG if for_log else None)
    if group is None:
        raise PayloadError(faults)
    for trajectory in group.trajectories:
        if trajectory.exchanges is not None and policy is not None:
            trajectory.exchanges.of_policy(policy)
    return group


def read_elements(artifacts: Artifacts, key: str) -> Iterator[tuple[int, bytes]]:
    """Yield the JSON of each group of a stored body, unparsed, with its offset in the uncompressed body.

    Raises ArtifactError if the body is missing or damaged.
    """
    with artifacts.open_blob(key) as file:
        yield from split_elements(file, key)


def split_elements(file: IO[bytes], name: str, is_arriving: bool = False) -> Iterator[tuple[int, bytes]]:
    """Yield what `read_elements` does of an open body, which errors call `name`.

    With `is_arriving`, the end of the JSON is the end: nothing more may come, not even the checksum of the whole.
    """
    splitter = JsonSplitter()
    for chunk in decompressed(file, name, is_arriving):
        elements = splitter.feed(chunk)
        for element, end in zip(elements, splitter.ends, strict=True):
            yield end - len(element), element
        if is_arriving and splitter.is_complete:
            return
    if not splitter.is_complete:
        raise ArtifactError(f"Blob {name} is damaged: its JSON ends too early.")


def place_of_role(group: Any, loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Return the place of a message's role, if it has one, because that is what isn't known."""
    for part in loc:
        group = group[part]
    return (*loc, "role") if isinstance(group, dict) and "role" in group else loc


def _parse(
    element: bytes, index: int, faults: list[FaultDetails], context: dict[str, bool] | None
) -> TrajectoryGroup | None:
    """Return the group, or add its faults to `faults` and return None."""
    place = ("trajectory_groups", index)
    try:
        group, checked = _validate(element, context)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False, include_input=False)
        parsed = from_json(element) if any(e["type"] == "message_or_choice" for e in details) else None
        for e in details:
            in_text = " of this group" if e["type"] == "json_invalid" else ""
            loc = place_of_role(parsed, e["loc"]) if e["type"] == "message_or_choice" else e["loc"]
            faults.append({"loc": (*place, *loc), "msg": e["msg"] + in_text, "type": e["type"]})
        return None
    if (inside := not_finite_place(checked)) is not None:
        faults.append({"loc": (*place, *inside), "msg": "JSON has neither NaN nor infinities", "type": "not_finite"})
        return None
    return group


def _validate(element: bytes, context: dict[str, bool] | None) -> tuple[TrajectoryGroup, bytes]:
    """Return the group, and the part of its JSON that may have NaN or infinities. Raises ValidationError."""
    if context is None:
        rest, cut = cut_logprobs(element)
        if cut.columns:
            with suppress(ValidationError):  # its places in the text would be those of the rest
                return _GROUP.validate_json(rest, context=cut), rest
    return _GROUP.validate_json(element, context=context), element
