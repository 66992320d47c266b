"""The commands that talk to a running service."""

import pytest
from helpers import inference_name, post_job, register, roll_out
from typer.testing import CliRunner

from tandem.cli.main import app


@pytest.fixture
def tandem(service):
    environment = {"TANDEM_URL": service.url, "TANDEM_API_KEY": service.key, "COLUMNS": "200"}

    def run(*arguments, **changes):
        return CliRunner().invoke(app, arguments, env={**environment, **changes})

    return run


def test_a_job_is_watched_to_its_end_and_listed(tandem, service, http):
    model = register(http)
    job = post_job(http, model, roll_out(service.openai(), inference_name(model)))
    watched = tandem("watch", job)
    assert watched.exit_code == 0, watched.output
    assert "succeeded" in watched.output
    listed = tandem("jobs", "--model", model["id"])
    assert job in listed.output and "succeeded" in listed.output
    assert f"tests/{model['name']}" in tandem("models", "--limit", "100").output


def test_errors_name_the_cause_and_the_remedy(tandem):
    assert "401" in tandem("models", TANDEM_API_KEY="tdm_wrong").output
    assert "tandem keys create" in tandem("jobs", TANDEM_API_KEY="").output
    absent = tandem("models", TANDEM_URL="http://127.0.0.1:9")
    assert absent.exit_code == 1 and "tandem up" in absent.output
    missing = tandem("watch", "00000000-0000-4000-8000-000000000000")
    assert missing.exit_code == 1 and "404" in missing.output
