"""The durable state of this API, in the service's database."""

from __future__ import annotations

from tandem.serve.finetuning.store.claims import FineTuningClaims
from tandem.serve.finetuning.store.files import Files
from tandem.serve.finetuning.store.jobs import FineTuningJobs
from tandem.serve.store.database import Database


class FineTuningStore:
    """One repository for each kind of row. All raise NoAnswerError when the database doesn't answer."""

    def __init__(self, database: Database):
        self.files = Files(database)
        self.jobs = FineTuningJobs(database)
        self.claims = FineTuningClaims(database)
