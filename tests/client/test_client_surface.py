"""Both clients have the same documented surface; errors and records behave as Python's own."""

import inspect
import pickle
import re
from datetime import UTC, datetime

import pytest
from paths import ROOT

import tandem.client as public
from tandem.client import AsyncClient, Client, Fault, Job, JobFailedError, Model, StatusError, TandemError

TIME = "2026-01-01T00:00:00Z"
MODEL = {"id": "m", "entity": "e", "project": "p", "name": "n", "base_model": "b", "step": 2, "created_at": TIME}
JOB = Job("j", "m", "failed", 1, "Out of memory.", None, None, False, 1, 0, datetime.now(UTC), None, None)
ERRORS = [value for value in vars(public).values() if isinstance(value, type) and issubclass(value, TandemError)]


def methods(kind):
    return {name: value for name, value in vars(kind).items() if not name.startswith("_")}


def test_both_clients_have_the_same_methods_with_the_same_parameters():
    ours, theirs = methods(Client), methods(AsyncClient)
    assert ours.keys() == theirs.keys()
    for name, method in ours.items():
        if inspect.isfunction(method):
            assert inspect.signature(method).parameters == inspect.signature(theirs[name]).parameters, name
            assert method.__doc__ or name == "close"


def test_the_documentation_lists_every_method_and_every_error():
    page = (ROOT / "docs" / "client.md").read_text()
    listed = {name for row in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    roots = {"TandemError", "StatusError"}
    assert listed == (methods(Client).keys() - {"url"}) | {kind.__name__ for kind in ERRORS} - roots


def test_help_shows_the_operation():
    signature = inspect.signature(Client.register_model)
    assert [*signature.parameters][:2] == ["self", "name"] and signature.return_annotation == "Model"
    assert inspect.signature(Client.versions).return_annotation == "list[Version]"
    assert inspect.signature(Client.events).return_annotation == "Iterator[Event]"
    assert inspect.signature(AsyncClient.events).return_annotation == "AsyncIterator[Event]"


def test_fields_of_a_newer_service_are_ignored():
    model = Model.parse({**MODEL, "colour": "red"})
    assert (model.name, model.created_at) == ("e/p/n", datetime(2026, 1, 1, tzinfo=UTC))
    with pytest.raises(TypeError):
        Model.parse({name: MODEL[name] for name in MODEL if name != "step"})


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_errors_survive_pickling(kind):
    if issubclass(kind, StatusError):
        error = kind("No.", 404, "code", "body.x", (Fault(("body", 0), "is wrong", "t"),), 2.0, "GET http://a/b")
    else:
        error = kind(JOB) if issubclass(kind, JobFailedError) else kind("No.")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (kind, str(error), vars(error))


def test_all_errors_but_the_roots_are_also_pythons():
    standard = OSError | ValueError | RuntimeError | LookupError
    assert {kind for kind in ERRORS if not issubclass(kind, standard)} == {TandemError, StatusError}
