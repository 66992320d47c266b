"""The route that creates supervised jobs. They are listed, cancelled and followed as training jobs."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response

from tandem.rl.supervised.config import SupervisedConfig
from tandem.serve.api.auth import Caller, TrainCaller
from tandem.serve.api.bodies.json_body import Received, documented, json_body
from tandem.serve.api.connection import to_completion
from tandem.serve.api.routes.training_jobs import job_response, reject_when_queue_is_full, sent_idempotency_key
from tandem.serve.api.services import Services, ServicesDep
from tandem.serve.api.wire.requests import CreateSFTTrainingJob
from tandem.serve.api.wire.responses import TrainingJobResponse
from tandem.serve.jobs.accept import AcceptedJob, JobAcceptance, OfferedJob
from tandem.serve.jobs.datasets import find_dataset

router = APIRouter(prefix="/preview", tags=["training-jobs"])


@router.post(
    "/sft-training-jobs",
    name="Create SFT Training Job",
    dependencies=[Depends(reject_when_queue_is_full)],
    **documented(CreateSFTTrainingJob),
)
async def create_sft_training_job(
    request: Request,
    response: Response,
    caller: TrainCaller,
    body: Annotated[Received[CreateSFTTrainingJob], Depends(json_body(CreateSFTTrainingJob))],
    services: ServicesDep,
) -> TrainingJobResponse:
    """Accept a dataset to fine-tune a model on. Once this returns, the job survives any crash.

    Retries are safe as for other training jobs: see the header `Idempotency-Key` there.
    """
    work = partial(_accept, body.value, caller, services, sent_idempotency_key(request))
    return job_response(await to_completion(request, work), response)


def _accept(
    body: CreateSFTTrainingJob,
    caller: Caller,
    services: Services,
    key: str | None,
    check_connected: Callable[[], None],
) -> AcceptedJob:
    offered = OfferedJob(
        model=services.store.models.get(str(body.model_id), caller.entity),
        config=body.config or SupervisedConfig(),
        body_sha256=hashlib.sha256(body.model_dump_json(exclude_none=True).encode()).hexdigest(),
        payload=find_dataset(services.store, body.training_data_url, caller.entity),
        idempotency_key=key,
        api_key_id=caller.key_id,
        kind="sft",
    )
    return JobAcceptance(services.store, services.artifacts, services.config).accept(offered, confirm=check_connected)
