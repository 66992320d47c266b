"""The engine of the real service is compared with the learner on every version that a job makes."""

import pytest
from helpers import inference_name, register, roll_out, train
from ray import serve

from tandem.cluster.errors import AdapterUnavailableError
from tandem.serve.app.engines.handles import engine_check

ANSWER_S = 60.0


@pytest.fixture
def check(service):
    return engine_check(serve.get_deployment_handle("engine-tandem-tiny", "tandem"))


@pytest.mark.parametrize("learning_rate", [0.0, 1e-7, 1e-5, 1e-3, 0.05])
def test_learner_and_engine_agree_however_little_or_much_was_learned(service, http, check, learning_rate):
    openai, model = service.openai(), register(http)
    for step in (1, 2):
        train(http, model, roll_out(openai, inference_name(model)), learning_rate=learning_rate)
        versions = http.get(f"/preview/models/{model['id']}/versions").json()["data"]
        digest = next(version["digest"] for version in versions if version["step"] == step)
        [report] = check(digest, None, ANSWER_S)
        assert report["is_right"] and report["max"] < report["tolerance_max"] / 3, report


def test_an_adapter_that_is_missing_is_an_error_of_its_own(check):
    """So the coordinator can tell it from an engine that doesn't answer."""
    [answer] = check("e" * 64, None, ANSWER_S)
    assert isinstance(answer, AdapterUnavailableError)
