"""Keeps the index up to date while the service runs."""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import suppress
from typing import Any, Protocol

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.config import TandemConfig
from tandem.cluster.processes.low_priority import NICE
from tandem.serve.store.store import Store
from tandem.serve.trajectories.indexing import index_next
from tandem.serve.trajectories.removal import mark_surplus, remove_marked

logger = logging.getLogger(__name__)
POLL_S = 1.0
RETENTION_S = 3600.0
IDLE_S = 60.0
"""Seconds without work after which the process that indexes ends."""


class Indexer(Protocol):
    def index_all(self) -> None:
        """Index all sources that wait."""

    def end(self) -> None:
        """Give back what idle indexing holds. A later call of `index_all` gets it again."""


class IndexWorker:
    """Indexes in a process of its own: parsing holds Python's interpreter lock, and takes memory with the payload."""

    def __init__(self, config: TandemConfig):
        with suppress(OSError):
            os.nice(NICE)
        self._config, self._artifacts = config, Artifacts(config.artifacts_root)
        self._store = Store(config.resolved_store_url)

    def index_all(self) -> None:
        while index_next(self._store, self._artifacts, self._config):
            pass


class RayIndexer:
    """An IndexWorker in an actor on this node, while there is work."""

    def __init__(self, config: TandemConfig):
        self._config = config
        self._actor: Any = None

    def index_all(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        if self._actor is None:
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
            worker = ray.remote(IndexWorker).options(num_cpus=0, scheduling_strategy=here, max_restarts=0)
            self._actor = worker.remote(self._config)
        try:
            ray.get(self._actor.index_all.remote())
        except ray.exceptions.RayActorError:
            self._actor = None  # the lease of its source ends, and another process takes over
            raise

    def end(self) -> None:
        import ray

        if self._actor is not None:
            ray.kill(self._actor)
            self._actor = None


class Upkeep:
    """Indexes, applies retention, and removes what is marked. Several processes may do so at once."""

    def __init__(self, store: Store, artifacts: Artifacts, config: TandemConfig, indexer: Indexer):
        self._store, self._artifacts, self._config, self._indexer = store, artifacts, config, indexer
        self._retention_at = self._worked_at = 0.0

    def run(self) -> None:
        """Work until the process ends."""
        enrolled = False
        while True:
            try:
                while not enrolled:
                    enrolled = self._store.trajectory_index.enrol() == 0
                self.step()
            except Exception:
                logger.warning("The upkeep of trajectories failed; the next attempt is soon", exc_info=True)
                time.sleep(10 * POLL_S)
            time.sleep(POLL_S)

    def step(self) -> None:
        """Do what is due now."""
        now = time.monotonic()
        index = self._store.trajectory_index
        if now >= self._retention_at:
            mark_surplus(self._store, self._config.trajectories)
            index.enrol()  # a process of the release before may still add jobs
            self._retention_at = now + RETENTION_S
        if index.has_pending():
            self._indexer.index_all()
            self._worked_at = time.monotonic()
        elif now > self._worked_at + IDLE_S:
            self._indexer.end()
        if index.has_removals():
            remove_marked(self._store, self._artifacts)


def start_upkeep(store: Store, artifacts: Artifacts, config: TandemConfig) -> None:
    """Work in a thread that ends with the process."""
    upkeep = Upkeep(store, artifacts, config, RayIndexer(config))
    threading.Thread(target=upkeep.run, name="trajectories", daemon=True).start()
