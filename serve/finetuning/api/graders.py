"""Routes of graders: check one, and run one on a sample."""

from __future__ import annotations

import time
from typing import Annotated, Any

from fastapi import APIRouter, Depends

from tandem.rl.graders.errors import GraderError
from tandem.rl.graders.grading import Grade
from tandem.rl.graders.sample import Sample
from tandem.rl.graders.spec import LabelModelGrader, ScoreModelGrader, parts
from tandem.serve.api.auth import TrainCaller
from tandem.serve.api.bodies.json_body import documented
from tandem.serve.api.services import ServicesDep
from tandem.serve.finetuning.api.bodies import Body, openai_body
from tandem.serve.finetuning.api.wire import (
    GraderErrors,
    GraderMetadata,
    GraderRun,
    GraderToRun,
    GraderToValidate,
    GraderValidated,
)
from tandem.serve.finetuning.completions import OwnCompletions
from tandem.serve.finetuning.graders import check_grader, grading

router = APIRouter(prefix="/fine_tuning/alpha/graders", tags=["fine-tuning"])


@router.post("/validate", **documented(GraderToValidate))
def validate_grader(
    caller: TrainCaller,
    body: Annotated[Body[GraderToValidate], Depends(openai_body(GraderToValidate))],
    services: ServicesDep,
) -> GraderValidated:
    """Check that this service can run a grader, and return it."""
    check_grader("grader", body.value.grader, caller.entity, services)
    return GraderValidated(grader=body.value.grader.model_dump(mode="json", exclude_none=True))


@router.post("/run", **documented(GraderToRun))
async def run_grader(
    caller: TrainCaller,
    body: Annotated[Body[GraderToRun], Depends(openai_body(GraderToRun))],
    services: ServicesDep,
) -> GraderRun:
    """Grade a sample. A grader that fails gives the reward 0, and says why in `metadata.errors`."""
    wanted, began = body.value, time.monotonic()
    check_grader("grader", wanted.grader, caller.entity, services)
    errors, grade = GraderErrors(), Grade(0.0, {})
    judges = OwnCompletions(services, caller.entity, key_id=caller.key_id)
    try:
        run = grading(wanted.grader, judges, caller.entity, services.config)
        grade = await run(wanted.item, Sample(wanted.model_sample))
    except GraderError as error:
        errors = _flags(error)
    asked = [part.model for _, part in parts(wanted.grader) if isinstance(part, ScoreModelGrader | LabelModelGrader)]
    return GraderRun(
        reward=grade.reward,
        sub_rewards=dict(grade.sub_rewards),
        model_grader_token_usage_per_model=dict(grade.judge_tokens),
        metadata=GraderMetadata(
            errors=errors,
            execution_time=time.monotonic() - began,
            name=wanted.grader.name,
            sampled_model_name=asked[0] if asked else None,
            scores=dict(grade.sub_rewards),
            token_usage=sum(grade.judge_tokens.values()) if asked else None,
            type=wanted.grader.type,
        ),
    )


def _flags(error: GraderError) -> GraderErrors:
    flags: dict[str, Any] = {error.kind: True}
    if error.kind == "python_grader_runtime_error":
        flags["python_grader_runtime_error_details"] = error.reason
    elif error.kind == "python_grader_server_error":
        flags["python_grader_server_error_type"] = error.reason
    else:
        # The only other field for a sentence.
        flags["model_grader_server_error_details"] = error.reason
    return GraderErrors(**flags)
