"""A Python client of Tandem's HTTP API, for rollout and training code on any machine.

    from tandem.client import Client

    client = Client("http://127.0.0.1:8000", "tdm_...")      # default: TANDEM_URL and TANDEM_API_KEY
    model = client.register_model("agent", project="demo", base_model="tandem/tiny")
    openai = client.openai()                                 # sample with model.name
    job = client.train(model, groups, learning_rate=1e-3)
    for event in client.events(job):
        print(event.type, event.data)
    version = client.wait(job).step                          # raises JobFailedError with the service's sentence

`AsyncClient` has the same methods, to be awaited. `capture` records what an agent of any framework asks and gets, so
that it trains without a change.
"""

from tandem.client.async_client import AsyncClient
from tandem.client.capturing.capture import capture, no_capture, recorded
from tandem.client.capturing.rollout import NothingCapturedError, Rollout
from tandem.client.errors import (
    AuthenticationError,
    ConflictError,
    ForbiddenError,
    InvalidRequestError,
    JobCancelledError,
    JobFailedError,
    NoAnswerError,
    NotFoundError,
    QueueFullError,
    ServiceError,
    SettingsError,
    StatusError,
    TandemError,
    TransferError,
    UnexpectedAnswerError,
    WaitTimeoutError,
)
from tandem.client.judging import JudgeError, Score, judge_group
from tandem.client.records import (
    Adapter,
    ApiKey,
    Artifact,
    Checkpoint,
    Dataset,
    Event,
    Fault,
    Health,
    Job,
    Model,
    Version,
)
from tandem.client.retries import Retries
from tandem.client.sync_client import Client

__all__ = [
    "Adapter",
    "ApiKey",
    "Artifact",
    "AsyncClient",
    "AuthenticationError",
    "Checkpoint",
    "Client",
    "ConflictError",
    "Dataset",
    "Event",
    "Fault",
    "ForbiddenError",
    "Health",
    "InvalidRequestError",
    "Job",
    "JobCancelledError",
    "JobFailedError",
    "JudgeError",
    "Model",
    "NoAnswerError",
    "NotFoundError",
    "NothingCapturedError",
    "QueueFullError",
    "Retries",
    "Rollout",
    "Score",
    "ServiceError",
    "SettingsError",
    "StatusError",
    "TandemError",
    "TransferError",
    "UnexpectedAnswerError",
    "Version",
    "WaitTimeoutError",
    "capture",
    "judge_group",
    "no_capture",
    "recorded",
]
