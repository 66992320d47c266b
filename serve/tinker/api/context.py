"""What the routes of the Tinker API share in a process."""

from __future__ import annotations

from concurrent.futures import Future
from functools import cached_property
from typing import Annotated

from fastapi import Depends, Request

from tandem.cluster.config.tinker import TinkerConfig
from tandem.cluster.processes.deadlines import in_thread
from tandem.serve.api.services import Services, ServicesDep
from tandem.serve.tinker.api.base_models import BaseModels
from tandem.serve.tinker.api.result_watch import ResultWatch
from tandem.serve.tinker.sampling.known_samplers import KnownSamplers
from tandem.serve.tinker.sampling.sampling import Sampling
from tandem.serve.tinker.store.catalog import Catalog
from tandem.serve.tinker.store.copies import Copies
from tandem.serve.tinker.store.run_states import RunStates
from tandem.serve.tinker.store.session_search import SessionSearch
from tandem.serve.tinker.store.store import TinkerStore


class Tinker:
    """The services of this process, with the store of the Tinker API."""

    def __init__(self, services: Services):
        self.services = services
        self.store = TinkerStore(services.store.database, services.config.tinker, services.base_models)

    @cached_property
    def warm_up(self) -> Future[None]:
        """Import in a thread what the first forward_backward needs, which takes seconds. It starts on first use."""
        return in_thread(_import_checks, "tinker-warm-up")

    @property
    def config(self) -> TinkerConfig:
        return self.services.config.tinker

    @cached_property
    def results(self) -> ResultWatch:
        """The waits of this process's requests for results."""
        return ResultWatch(self.services.store.database)

    @cached_property
    def sampling(self) -> Sampling:
        services = self.services
        samplers = KnownSamplers(services.store, self.store.samplers)
        return Sampling(services.engine, samplers, self.config, services.base_models)

    @cached_property
    def catalog(self) -> Catalog:
        """What clients list."""
        return Catalog(self.services.store.database)

    @cached_property
    def copies(self) -> Copies:
        return Copies(self.services.store.database, self.config.project)

    @cached_property
    def session_search(self) -> SessionSearch:
        return SessionSearch(self.services.store.database, self.config.project)

    @cached_property
    def run_states(self) -> RunStates:
        return RunStates(self.services.store.database)

    @cached_property
    def base_models(self) -> BaseModels:
        return BaseModels(self.services)


def _import_checks() -> None:
    import tandem.cluster.calls.wire.forward_backward  # noqa: F401  # and torch


async def _tinker(request: Request, services: ServicesDep) -> Tinker:
    state = request.app.state
    known: Tinker | None = getattr(state, "tinker", None)
    if known is None or known.services is not services:
        known = state.tinker = Tinker(services)
    return known


TinkerDep = Annotated[Tinker, Depends(_tinker)]
