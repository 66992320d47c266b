"""Executes a GraphQL operation, and answers an unknown one with an error that says what is served."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Mapping
from typing import Any

from graphql import (
    DocumentNode,
    GraphQLError,
    GraphQLResolveInfo,
    OperationDefinitionNode,
    execute_sync,
    parse,
    validate,
)

from tandem.cluster.telemetry.redaction import without_keys
from tandem.serve.api.error_responses import as_serve_error
from tandem.serve.errors import StorageFullError, UnavailableError
from tandem.serve.names import quoted
from tandem.serve.wandb.schema import SCHEMA

logger = logging.getLogger(__name__)
MAX_TOKENS = 2000
"""The longest operation of wandb 0.31 has about 300."""
MAX_ERRORS = 5
SERVED = (
    "This service answers only what the wandb package needs to upload training data, and to load, fork and upload the "
    "checkpoints of models; see docs/clients.md."
)
_WORDS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_seen: set[tuple[str, str]] = set()
_seen_lock = threading.Lock()


def execute(
    query: str, variables: Mapping[str, Any], operation_name: str | None, root: object, agent: str
) -> dict[str, Any]:
    """Return the JSON of the answer. Raises the errors of the service that a client should retry after."""
    try:
        document = parse(query, no_location=True, max_tokens=MAX_TOKENS)
    except GraphQLError as error:
        return _errors([f"The query isn't GraphQL: {error.message}. {SERVED}"])
    name = operation_name or _name_of(document)
    _note(name, agent)
    if faults := validate(SCHEMA, document, max_errors=MAX_ERRORS):
        told = "; ".join(fault.message for fault in faults)
        return _errors([f"Operation {quoted(name)} isn't served: {told} {SERVED}"])
    result = execute_sync(
        SCHEMA,
        document,
        root_value=root,
        variable_values=dict(variables),
        operation_name=operation_name,
        field_resolver=_resolve,
        type_resolver=lambda value, info, kind: "ArtifactSequence",  # the only one that implements an interface
    )
    if result.errors:
        return {"data": result.data} | _errors([_message(fault) for fault in result.errors])
    return {"data": result.data}


def _message(fault: GraphQLError) -> str:
    """Return the sentence of an error. Raises what isn't the sender's fault, which becomes 503, 507 or 500."""
    if fault.original_error is None:
        return fault.message
    known = as_serve_error(fault.original_error)
    if known is None or isinstance(known, UnavailableError | StorageFullError):
        raise known or fault.original_error
    return known.message


def _resolve(source: Any, info: GraphQLResolveInfo[object], **arguments: Any) -> Any:
    """Return the field of a dictionary, an attribute, or the result of a method. Their names are in snake case."""
    name = snake(info.field_name)
    value = source.get(name) if isinstance(source, dict) else getattr(source, name)
    return (
        value(**{snake(key): _snake_keys(argument) for key, argument in arguments.items()})
        if callable(value)
        else value
    )


def snake(name: str) -> str:
    """Return a name of the schema as Python writes it: artifactID is artifact_id."""
    return _WORDS.sub("_", name).lower()


def _snake_keys(value: Any) -> Any:
    match value:
        case dict():
            return {snake(key): _snake_keys(item) for key, item in value.items()}
        case list():
            return [_snake_keys(item) for item in value]
        case _:
            return value


def _name_of(document: DocumentNode) -> str:
    names = [
        definition.name.value
        for definition in document.definitions
        if isinstance(definition, OperationDefinitionNode) and definition.name
    ]
    return names[0] if names else "without a name"


def _note(operation: str, agent: str) -> None:
    """Log each operation once for each version of the client, so that an operator sees what clients use."""
    with _seen_lock:
        if (operation, agent) in _seen or len(_seen) >= 1000:
            return
        _seen.add((operation, agent))
    logger.info("W&B operation %s of client %s", quoted(operation), quoted(agent))


def _errors(messages: list[str]) -> dict[str, Any]:
    return {"errors": [{"message": without_keys(message)} for message in messages]}
