"""The documentation of the operation that creates a job equals the one from which clients were generated."""

import json

from paths import DATA

PUBLISHED = json.loads((DATA / "serverless_training_openapi.json").read_text())
PATH = "/v1/preview/training-jobs"


def inlined(part, document, seen=()):
    """Return a part of a document with its references resolved, to compare contents and not structure."""
    if isinstance(part, list):
        return [inlined(item, document, seen) for item in part]
    if not isinstance(part, dict):
        return part
    if "$ref" in part:
        name = part["$ref"].removeprefix("#/components/schemas/")
        assert name not in seen, f"{name} contains itself"
        return inlined(document["components"]["schemas"][name], document, (*seen, name))
    return {
        key: inlined(value, document, seen)
        for key, value in part.items()
        if not (key == "description" and isinstance(value, str))
    }


def test_posting_a_job_is_documented_as_published(http):
    document = http.get("/openapi.json").json()
    assert inlined(document["paths"][PATH]["post"], document) == inlined(PUBLISHED["paths"][PATH]["post"], PUBLISHED)
    assert document["components"]["securitySchemes"] == PUBLISHED["components"]["securitySchemes"]


def test_each_reference_leads_somewhere_and_validation_errors_echo_nothing(http):
    document = http.get("/openapi.json").json()
    for path, item in document["paths"].items():
        inlined(item, document)
        for operation in item.values():
            needs_key = operation.get("security") == [{"HTTPBearer": []}]
            assert needs_key == path.startswith(("/v1/", "/api/v1/", "/metrics")), path
    assert set(document["components"]["schemas"]["ValidationError"]["properties"]) == {"loc", "msg", "type"}
    assert http.get("/docs").status_code == 200
