"""Headers between a client, the API and an engine.

Responses say which policy version and which engine replica answered. The API's requests to an engine name the version,
the model as the client named it, who is charged, and the token of the replica.
"""

VERSION_HEADER, DIGEST_HEADER, REPLICA_HEADER = "x-policy-version", "x-policy-digest", "x-engine-replica"
MODEL_HEADER, TOKEN_HEADER = "x-requested-model", "x-engine-token"
CHARGED_HEADER = "x-charged-to"
"""In a request to an engine: the entity, key, model and job that pay. The API writes it; a client's isn't passed on."""
STOPPING_HEADER = "x-engine-stopping"
"""In a response: the replica takes no more requests. Another one may."""
