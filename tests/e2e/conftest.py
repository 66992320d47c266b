"""One running service for all end-to-end tests: Ray, Serve, vLLM, a learner, SQLite, the tiny model."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

_running = ExitStack()


@dataclass(frozen=True)
class Service:
    url: str
    key: str
    home: Path

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.base_url, headers={"Authorization": f"Bearer {self.key}"}, timeout=300)

    def openai(self) -> OpenAI:
        return OpenAI(base_url=self.base_url, api_key=self.key, timeout=300, max_retries=0)


@pytest.fixture(scope="session")
def service(ray_local, tmp_path_factory) -> Service:
    from ray import serve

    from tandem.cli.launch import running
    from tandem.cluster.config import TINY, CoordinatorConfig, HttpConfig, LogprobsConfig, ProjectConfig, TandemConfig
    from tandem.cluster.processes.held_ports import hold_port
    from tandem.serve.keys import create_key
    from tandem.serve.store.store import Store

    home = tmp_path_factory.mktemp("tandem")
    held = hold_port("127.0.0.1")  # until the fixture is gone
    port = held.getsockname()[1]
    base = TINY.model_copy(update={"logprobs": LogprobsConfig(mode="shared")})  # learner and engine, on every job
    config = TandemConfig(
        home=home,
        http=HttpConfig(port=port),
        base_models=(base,),
        coordinator=CoordinatorConfig(lease_s=10),
        projects={"default": ProjectConfig(run_code=True)},
        resource_specs=[{"spec_id": 500, "spec_code": "small", "num_cpus": 0.5, "max_num": 4}],
    )
    with _running:
        _running.callback(serve.shutdown)
        _running.enter_context(running(config))
        key = create_key(Store(config.resolved_store_url), name="tests", entity="default")
        yield Service(f"http://127.0.0.1:{port}", key, home)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(nextitem):
    """Stop the service and Ray Serve with the last test of this folder, so that they don't slow down the next ones."""
    if nextitem is None or Path(__file__).parent not in nextitem.path.parents:
        _running.close()


@pytest.fixture
def http(service):
    with service.http() as client:
        yield client


@pytest.fixture(scope="session")
def sdk(service):
    """A session of the tinker SDK."""
    from tinker_service import connect

    with connect(service) as client:
        yield client
