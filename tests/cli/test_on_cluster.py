"""Find the service of a cluster. A Serve application without engines stands in for the service."""

import pytest
from ray import serve

from tandem.cli import on_cluster
from tandem.cli.deployment import APPLICATION
from tandem.cluster.processes.held_ports import hold_port
from tandem.serve.app.serve_state import application_status


@serve.deployment
class Something:
    pass


@pytest.fixture
def port(ray_local):
    """The port of a Ray Serve that was started without a host."""
    with hold_port("127.0.0.1") as held:
        port = held.getsockname()[1]
        serve.start(http_options={"port": port})
        serve.run(Something.bind(), name=APPLICATION)
        yield port
        serve.shutdown()


def test_it_is_found_where_serve_listens_by_default(port):
    assert on_cluster.service_url() == f"http://127.0.0.1:{port}"
    assert on_cluster.settled_service(print, own=lambda started_by: False).started_by is None
    assert application_status(APPLICATION).deployments["Something"].status == "HEALTHY"


def test_there_is_none_where_serve_doesnt_run(ray_local):
    assert application_status(APPLICATION) is None
    assert not on_cluster.serve_is_running()
    assert on_cluster.settled_service(print, own=lambda started_by: False) is None
