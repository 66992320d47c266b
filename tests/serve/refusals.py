"""Checks for every rejected request: one shape, plain words, and nothing left behind."""

import re
from pathlib import Path

from sqlalchemy import create_engine

from tandem.serve.store.tables.training import Table

# Names of libraries and types that a client doesn't know, and values in Python's notation.
JARGON = re.compile(
    r"pydantic|msgspec|sqlalchemy|sqlite|fastapi|ValidationError|validator|Traceback|discriminator|\btag\b|Input should"
    r"|Extra inputs|Field required|<class|object at 0x|None|\bTrue\b|\bFalse\b|\bdict\b|site-packages|/tmp/"
)


def assert_one_shape(response, status):
    """Check that a response has the shape of an error, in plain words. Return the error."""
    assert response.status_code == status, response.text[:1000]
    body = response.json()
    if response.request.url.path.startswith("/v1/messages"):
        body = in_the_one_shape(body, status)
    error = body["error"]
    assert set(body) <= {"error", "detail"}
    assert set(error) == {"message", "type", "code", "param"}
    assert all(isinstance(error[key], str) for key in ("message", "type", "code"))
    assert error["param"] is None or isinstance(error["param"], str)
    assert set(map(frozenset, body.get("detail", ()))) <= {frozenset(("loc", "msg", "type"))}
    said = error["message"].removeprefix(f"{error['param']}: ")  # may contain names from the request
    for sentence in (said, *(fault["msg"] for fault in body.get("detail", ()))):
        assert not JARGON.search(sentence), sentence
        assert 8 < len(sentence) < 600, sentence
    assert error["message"].isprintable(), error["message"]
    return error


def in_the_one_shape(body, status):
    """Check that an error has Anthropic's shape, and return it in the one of the other routes."""
    assert set(body) == {"type", "error", "request_id"} and body["type"] == "error"
    assert set(body["error"]) == {"type", "message"}
    place = re.match(r"([\w.-]+): ", body["error"]["message"])
    code = {401: "invalid_api_key", 404: "route", 405: "route"}.get(status, "unsaid")
    return {"error": {**body["error"], "code": code, "param": place and place[1]}}


def everything_held(store_url, artifacts_root):
    """Return all rows of the store and all files of the artifact store."""
    engine = create_engine(store_url)
    with engine.connect() as connection:
        names = [table.name for table in Table.metadata.sorted_tables]
        # Text needs no compiling, which is slow.
        rows = {name: connection.exec_driver_sql(f'SELECT * FROM "{name}"').all() for name in names}
    engine.dispose()
    return rows, {path: path.read_bytes() for path in Path(artifacts_root).rglob("*") if path.is_file()}
