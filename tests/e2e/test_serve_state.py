"""Ray Serve's state, read without `serve.status`, which returns the same and takes far longer."""

from ray import serve
from waiting import wait_until

from tandem.cli import on_cluster
from tandem.cli.deployment import APPLICATION
from tandem.serve.app.serve_state import application_status


def test_the_status_of_an_application_equals_serves_own(service):
    wait_until(lambda: application_status(APPLICATION) == serve.status().applications[APPLICATION])
    assert application_status("absent") is None


def test_the_service_of_this_cluster_is_found(service):
    assert on_cluster.serve_is_running()
    assert on_cluster.settled_service(print, own=lambda started_by: False).started_by is None
    assert on_cluster.service_url() == service.url
