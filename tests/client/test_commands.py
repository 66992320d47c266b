"""`tandem models`, `jobs` and `watch`, which show what the client returns."""

import json

import pytest
from serve_fakes import groups
from typer.testing import CliRunner

from tandem.cli.main import app as commands
from tandem.client import Client
from tandem.cluster.engine.metrics.usage import Charged, EngineUsage, UsageBatch, Used


@pytest.fixture
def tandem(url, key, monkeypatch):
    monkeypatch.setenv("TANDEM_URL", url)
    monkeypatch.setenv("TANDEM_API_KEY", key)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: CliRunner().invoke(commands, arguments)


@pytest.fixture
def posted(url, key):
    """A model, and the id of its queued job."""
    with Client(url, key) as client:
        model = client.register_model("agent", project="project", base_model="tandem/tiny")
        yield model, client.train(model, groups())


def test_models_and_jobs_are_listed(tandem, posted):
    model, job = posted
    assert model.name in tandem("models").output and model.id in tandem("models").output
    listed = tandem("jobs", "--model", model.id).output
    assert job in listed and "queued" in listed


def test_only_as_many_as_wanted_are_listed(tandem, posted, url, key):
    with Client(url, key) as client:
        newer = client.register_model("newer", project="project", base_model="tandem/tiny")
    listed = tandem("models", "--limit", "1").output
    assert newer.id in listed and posted[0].id not in listed


def test_a_job_is_watched_to_its_success(tandem, posted, end_next_job):
    end_next_job()
    watched = tandem("watch", posted[1])
    assert watched.exit_code == 0 and "succeeded" in watched.output


def test_a_watched_job_that_trains_nothing_says_so(tandem, posted, end_next_job):
    end_next_job(warning="Nothing was trained: [/b] 2 trajectories are empty.")
    watched = tandem("watch", posted[1])
    assert watched.exit_code == 0 and "Nothing was trained: [/b] 2" in watched.output


def test_a_failed_job_ends_the_command_with_its_sentence(tandem, posted, end_next_job):
    end_next_job("Stage train: the learner ran out of memory.")
    watched = tandem("watch", posted[1])
    assert watched.exit_code == 1 and "the learner ran out of memory" in watched.output


@pytest.mark.parametrize(
    ("setting", "value", "status", "word"),
    [
        ("TANDEM_API_KEY", "", 2, "TANDEM_API_KEY"),
        ("TANDEM_API_KEY", "tdm_wrong", 1, "401"),
        ("TANDEM_URL", "localhost:8000", 2, "http://"),
        ("TANDEM_URL", "http://127.0.0.1:9", 1, "tandem up"),
    ],
)
def test_wrong_settings_are_explained(tandem, monkeypatch, setting, value, status, word):
    monkeypatch.setenv(setting, value)
    result = tandem("models")
    assert result.exit_code == status and word in result.output


def test_usage_is_shown_as_a_table_as_json_and_as_csv(tandem, posted, url, key, services):
    charged = Charged("sample", "team", "", posted[0].id, 0)
    batch = UsageBatch(1, {charged: Used(requests=3, sampled_tokens=12_345, engine_seconds=2.5)})
    services.store.usage.record(EngineUsage("replica", "tandem/tiny", [batch]))
    services.store.database._clock.advance(1)
    shown = tandem("usage").output
    assert "team/project/agent" in shown and "12,345" in shown and "total" in shown
    found = json.loads(tandem("usage", "--by", "model", "--by", "day", "--json").output)
    assert found["total"]["sampled_tokens"] == found["data"][0]["sampled_tokens"] == 12_345
    lines = tandem("usage", "--by", "phase", "--csv").output.splitlines()
    assert lines[0].startswith("phase,requests") and lines[1].startswith("sample,3,")
    refused = tandem("usage", "--by", "lunch")
    assert refused.exit_code == 1 and "group_by" in refused.output
