"""The store: all durable state of the service except blobs and checkpoint files."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from tandem.serve.store.changes import Changes
from tandem.serve.store.curves import Curves
from tandem.serve.store.database import Database, utc_now
from tandem.serve.store.keys import Keys
from tandem.serve.store.ledger.activity import ActivityOfModels
from tandem.serve.store.ledger.phases import JobPhases
from tandem.serve.store.ledger.sums import UsageSums
from tandem.serve.store.ledger.usage import Usage
from tandem.serve.store.overview import Overview
from tandem.serve.store.policies.garbage import Garbage
from tandem.serve.store.policies.lineage import Lineage
from tandem.serve.store.policies.models import Models
from tandem.serve.store.policies.retention import Retention
from tandem.serve.store.policies.tree import VersionTree
from tandem.serve.store.policies.versions import Versions
from tandem.serve.store.training.claims import Claims
from tandem.serve.store.training.jobs import Jobs
from tandem.serve.store.training.live_state import LiveState
from tandem.serve.store.training.queue import Queue
from tandem.serve.store.training.run_upkeep import RunUpkeep
from tandem.serve.store.uploads.datasets import Datasets
from tandem.serve.store.uploads.logs import Logs
from tandem.serve.store.uploads.trajectory_index import TrajectoryIndex
from tandem.serve.store.uploads.trajectory_search import TrajectorySearch
from tandem.serve.store.uploads.wandb import WandbArtifacts


class Store:
    """One repository for each kind of row, over one database: SQLite or PostgreSQL, by URL.

    Safe to share between threads; every process opens its own. Raises the errors of `Database`.
    """

    def __init__(self, url: str, clock: Callable[[], datetime] = utc_now):
        self.database = Database(url, clock)
        self.keys = Keys(self.database)
        self.models = Models(self.database)
        self.overview = Overview(self.database)
        self.versions = Versions(self.database)
        self.lineage = Lineage(self.database)
        self.tree = VersionTree(self.database)
        self.live_state = LiveState(self.database)
        self.logs = Logs(self.database)
        self.datasets = Datasets(self.database)
        self.jobs = Jobs(self.database)
        self.claims = Claims(self.database)
        self.usage = Usage(self.database)
        self.activity = ActivityOfModels(self.database)
        self.usage_sums = UsageSums(self.database)
        self.phases = JobPhases(self.database)
        self.changes = Changes(self.database)
        self.curves = Curves(self.database)
        self.queue = Queue(self.database)
        self.garbage = Garbage(self.database)
        self.retention = Retention(self.database)
        self.run_upkeep = RunUpkeep(self.database)
        self.trajectory_index = TrajectoryIndex(self.database)
        self.trajectories = TrajectorySearch(self.database)
        self.wandb = WandbArtifacts(self.database)

    def close(self) -> None:
        """Close the pooled connections."""
        self.database.close()
