"""The watch over alerts, for the deployment that runs jobs."""

from __future__ import annotations

from collections.abc import Callable

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.config import TandemConfig
from tandem.serve.alerts.delivery import Delivery
from tandem.serve.alerts.job_rules import JobRules
from tandem.serve.alerts.service_rules import Probe, ServiceRules
from tandem.serve.alerts.store import AlertStore
from tandem.serve.alerts.watch import AlertWatch
from tandem.serve.store.store import Store


def alert_watch(
    new_probe: Callable[[TandemConfig], Probe], config: TandemConfig, store: Store, artifacts: Artifacts
) -> AlertWatch:
    """Return the watch. `new_probe` makes a probe of the service's parts, in the process where the watch runs."""
    alerts, rules = AlertStore(store.database), config.alert_rules
    return AlertWatch(
        config,
        alerts,
        JobRules(store.database, rules),
        ServiceRules(config, store.database, artifacts, new_probe(config)),
        Delivery(alerts, config.alerts, rules),
    )
