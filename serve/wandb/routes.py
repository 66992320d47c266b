"""Routes of the W&B API. Their paths are those that the wandb package appends to `WANDB_BASE_URL`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request

from tandem.serve.api.auth import TrainCaller, authenticate
from tandem.serve.api.bodies.json_body import JsonText, json_text
from tandem.serve.api.services import ServicesDep
from tandem.serve.errors import InvalidRequestError, Problem
from tandem.serve.ingest.request_body import BodyLimit, receive
from tandem.serve.wandb import file_routes
from tandem.serve.wandb.addresses import signed_urls
from tandem.serve.wandb.answers import Desk
from tandem.serve.wandb.commits import Commits
from tandem.serve.wandb.execution import execute
from tandem.serve.wandb.library import Library
from tandem.serve.wandb.operations import Operations, check_entity

MAX_AGENT = 80
router = APIRouter(dependencies=[Depends(authenticate)], include_in_schema=False)


def add_routes(app: FastAPI) -> None:
    """Add the routes to the application."""
    app.include_router(router)
    app.include_router(file_routes.router)


@router.post("/graphql")
def graphql(
    request: Request, caller: TrainCaller, body: Annotated[JsonText, Depends(json_text)], services: ServicesDep
) -> dict[str, Any]:
    """Execute a GraphQL operation. What isn't served is an error in the answer, as GraphQL clients expect."""
    match body.value:
        case {"query": str(query), **rest}:
            variables, name = rest.get("variables") or {}, rest.get("operationName") or None
        case _:
            raise InvalidRequestError([Problem(("body", "query"), "is missing; send a GraphQL document as a string")])
    if not isinstance(variables, dict) or not isinstance(name, str | None):
        raise InvalidRequestError([Problem(("body", "variables"), "must be an object, and operationName a string")])
    library = Library(services.store, services.artifacts, caller.entity)
    desk = Desk(library, signed_urls(request, services.store))
    operations = Operations(desk, services.store, Commits(services, library))
    agent = request.headers.get("user-agent", "unnamed")[:MAX_AGENT]
    return execute(query, variables, name, operations, agent)


@router.post("/files/{entity}/{project}/{run}/file_stream")
async def file_stream(
    request: Request, entity: str, project: str, run: str, caller: TrainCaller, services: ServicesDep
) -> dict[str, Any]:
    """Take the metrics and the console output of a run, and keep nothing of them.

    The package sends them while a run is open, and would report a refusal as an error of the user's program.
    """
    check_entity(entity, caller.entity)
    limit = BodyLimit(services.config.limits.max_request_bytes, "limits.max_request_bytes")
    await receive(request, limit, services.config.deadlines.receive_s, lambda piece: None, may_block=False)
    return {"exitcode": None, "limits": {}}
