"""What is read of Ray Serve's state without `serve.status`, which says the same and takes far longer."""

from ray import serve
from waiting import wait_until

from tandem.cli import on_cluster
from tandem.cli.launch import APPLICATION
from tandem.serve.app.serve_state import application_status


def test_an_application_is_told_as_serve_tells_it(service):
    wait_until(lambda: application_status(APPLICATION) == serve.status().applications[APPLICATION])
    assert application_status("nobody's") is None


def test_the_service_of_this_cluster_is_found(service):
    assert on_cluster.serve_is_running()
    assert on_cluster.settled_service(print, own=lambda started_by: False).started_by is None
    assert on_cluster.service_url() == service.url
