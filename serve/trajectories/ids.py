"""Ids of trajectories and groups: the place of each in the payload of its job or log entry."""

from __future__ import annotations

import re
from typing import NamedTuple

from tandem.serve.errors import NotFoundError
from tandem.serve.names import quoted

_ID = re.compile(r"([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})\.(0|[1-9][0-9]{0,8})\.(0|[1-9][0-9]{0,8})", re.ASCII)


class TrajectoryId(NamedTuple):
    """`{source}.{group}.{index}`: the id of the job or log entry, and the indices in its payload.

    Rollouts of a group that failed without a trajectory have the indices after those of its trajectories.
    """

    source: str
    group: int
    trajectory: int

    def __str__(self) -> str:
        return f"{self.source}.{self.group}.{self.trajectory}"

    @classmethod
    def parse(cls, id: str) -> TrajectoryId:
        """Raises NotFoundError for a text that is no such id."""
        found = _ID.fullmatch(id)
        if found is None:
            raise NotFoundError(
                f"{quoted(id)} isn't the id of a trajectory; it is the id of a training job or log entry, the group's "
                "index and the trajectory's index, joined by dots.",
                "trajectory_not_found",
                "trajectory_id",
            )
        return cls(found[1], int(found[2]), int(found[3]))
