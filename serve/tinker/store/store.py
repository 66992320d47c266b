"""The durable state of this API, in the service's database."""

from __future__ import annotations

from collections.abc import Collection

from tandem.cluster.config.tinker import TinkerConfig
from tandem.serve.store.database import Database
from tandem.serve.tinker.store.calls import Calls
from tandem.serve.tinker.store.checkpoints import Checkpoints
from tandem.serve.tinker.store.claims import RunClaims
from tandem.serve.tinker.store.runs import Runs
from tandem.serve.tinker.store.samplers import Samplers
from tandem.serve.tinker.store.sessions import Sessions


class TinkerStore:
    """One repository for each kind of row. All raise NoAnswerError when the database doesn't answer."""

    def __init__(
        self, database: Database, config: TinkerConfig | None = None, base_models: Collection[str] | None = None
    ):
        """`base_models`: those that are served, so that calls of runs on others are refused; None: all."""
        config = config or TinkerConfig()
        self.database = database
        self.sessions = Sessions(database)
        self.runs = Runs(database, config.project)
        self.calls = Calls(database, config, base_models)
        self.checkpoints = Checkpoints(database)
        self.samplers = Samplers(database)
        self.claims = RunClaims(database, config.gap_s)
