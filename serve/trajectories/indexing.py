"""Puts the trajectories of stored payloads into the index, beside the requests that brought them.

A source waits as a row from the moment it is accepted, so a crash at any point costs nothing but time: the next attempt
begins after the last complete group. Rows are added some hundred at a time, since SQLite has one writer.
"""

from __future__ import annotations

import logging

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.config import TandemConfig
from tandem.cluster.payloads.reading import read_elements
from tandem.serve.errors import NoAnswerError
from tandem.serve.store.store import Store
from tandem.serve.store.uploads.trajectory_index import (
    ClaimedSource,
    LostSourceError,
    NewGroup,
    NewTrajectory,
    TrajectoryIndex,
)
from tandem.serve.trajectories.summaries import summary

logger = logging.getLogger(__name__)
ROWS_AT_ONCE = 500


def unkept_entities(config: TandemConfig) -> list[str]:
    """Return the projects whose trajectories are never indexed, and are deleted with the end of their job."""
    return [name for name, project in config.projects.items() if not project.keep_trajectories]


def index_next(store: Store, artifacts: Artifacts, config: TandemConfig) -> bool:
    """Index the newest source that waits. Return False if none does."""
    source = store.trajectory_index.claim(unkept_entities(config))
    if source is None:
        return False
    try:
        _index(store.trajectory_index, artifacts, source)
    except LostSourceError:
        logger.info("Trajectories of %s %s are indexed or removed by another process", source.kind, source.id)
    except NoAnswerError:  # the lease ends, and another attempt follows
        raise
    except Exception as error:
        logger.warning("Can't index the trajectories of %s %s", source.kind, source.id, exc_info=True)
        _give_up(store.trajectory_index, source, f"{type(error).__name__}: {error}")
    return True


def _give_up(index: TrajectoryIndex, source: ClaimedSource, reason: str) -> None:
    try:
        index.fail(source, reason[:500])
    except LostSourceError:
        logger.info("Trajectories of %s %s are indexed or removed by another process", source.kind, source.id)


def _index(index: TrajectoryIndex, artifacts: Artifacts, source: ClaimedSource) -> None:
    index.measured(source, artifacts.blob_size(source.payload_key))
    groups: list[NewGroup] = []
    trajectories: list[NewTrajectory] = []
    for number, (start, element) in enumerate(read_elements(artifacts, source.payload_key)):
        if number < source.num_groups:
            continue
        group, rows = summary(element, number, start, source.policy)
        for part in _parts(rows):
            trajectories += part
            if part is rows or part[-1] is rows[-1]:
                groups.append(group)
            if len(trajectories) >= ROWS_AT_ONCE:
                index.put(source, groups, trajectories)
                groups, trajectories = [], []
    index.put(source, groups, trajectories)
    index.finish(source)


def _parts(rows: list[NewTrajectory]) -> list[list[NewTrajectory]]:
    return [rows[place : place + ROWS_AT_ONCE] for place in range(0, len(rows), ROWS_AT_ONCE)] or [rows]
