"""The route of a trajectory's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from fastapi import APIRouter, FastAPI, Query

from tandem.serve.api.auth import TrainCaller, include_with_key
from tandem.serve.api.services import ServicesDep
from tandem.serve.trajectories.ids import TrajectoryId
from tandem.serve.trajectories.token_views import tokens_view
from tandem.serve.trajectories.token_wire import TrajectoryTokens
from tandem.serve.trajectories.tokens import find_tokens

router = APIRouter(prefix="/preview", tags=["trajectories"])
MAX_TOKENS = 10_000
DEFAULT_TOKENS = 2_000


def add_routes(app: FastAPI) -> None:
    """Add the route under /v1."""
    include_with_key(app, router)


@router.get("/trajectories/{trajectory_id}/tokens")
def get_trajectory_tokens(
    trajectory_id: str,
    caller: TrainCaller,
    services: ServicesDep,
    start: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
    limit: Annotated[int, Query(ge=1, le=MAX_TOKENS)] = DEFAULT_TOKENS,
    as_sent: bool = False,
) -> TrajectoryTokens:
    """Return the tokens of a trajectory as they were trained: ids, texts, mask, logprobs, advantages and versions.

    `start` and `limit` choose a range of the tokens; all else is of the whole trajectory. One that trained nothing has
    the tokens that it was sent with, and the reason. 409 before its job has ended, 410 for traces that aren't kept;
    with `as_sent`, these too have the tokens that they were sent with.
    """
    found = find_tokens(services, TrajectoryId.parse(trajectory_id), caller.entity, as_sent)

    def bytes_of(ids: Sequence[int]) -> list[bytes]:
        if found.base_model not in services.base_models:  # no longer configured, so its tokenizer isn't there
            return [b""] * len(ids)
        return services.preparation.token_bytes(found.base_model, ids)

    return tokens_view(found, start, limit, bytes_of)
