"""The durable state of this API, in the service's database."""

from __future__ import annotations

from tandem.serve.modelarts.store.claims import Claims
from tandem.serve.modelarts.store.configs import SavedConfigs
from tandem.serve.modelarts.store.datasets import DatasetVersions
from tandem.serve.modelarts.store.jobs import UserJobs
from tandem.serve.modelarts.store.logs import JobLogs
from tandem.serve.store.database import Database


class ModelArtsStore:
    """One repository for each kind of row. All raise NoAnswerError when the database doesn't answer."""

    def __init__(self, database: Database):
        self.configs = SavedConfigs(database)
        self.jobs = UserJobs(database)
        self.claims = Claims(database)
        self.logs = JobLogs(database)
        self.datasets = DatasetVersions(database)
