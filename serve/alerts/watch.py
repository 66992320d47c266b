"""Evaluates the rules in one process of the service, and keeps the alerts in the store up to date."""

from __future__ import annotations

import logging
import os
import socket
import threading
import uuid
from collections import Counter
from collections.abc import Sequence
from datetime import timedelta
from typing import Protocol

from tandem.cluster.config import TandemConfig
from tandem.cluster.config.observability import AlertKind
from tandem.serve.alerts.delivery import Delivery
from tandem.serve.alerts.findings import Finding
from tandem.serve.alerts.job_rules import JobRules
from tandem.serve.alerts.service_rules import ServiceRules
from tandem.serve.alerts.store import AlertStore

logger = logging.getLogger(__name__)
ABSENCES = 2
"""Evaluations one after the other without a finding before its alert is over, so that one that comes and goes isn't
announced each time."""
OF_MODELS = ("failed_jobs", "logprob_mismatch")
CLEAN_EVERY = 240


class ServiceFindings(Protocol):
    def find(self) -> tuple[Sequence[Finding], set[AlertKind]]: ...


class AlertWatch:
    """A runner: `run(stop)`. Any number may share a store; the one with the lease works."""

    def __init__(
        self,
        config: TandemConfig,
        store: AlertStore,
        jobs: JobRules,
        service: ServiceRules | ServiceFindings,
        delivery: Delivery,
    ):
        self._rules, self._webhooks, self._store = config.alert_rules, config.alerts, store
        self._jobs, self._service, self._delivery = jobs, service, delivery
        self._owner = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._absent: Counter[str] = Counter()
        self._num_evaluations = 0

    def run(self, stop: threading.Event) -> None:
        """Evaluate until `stop` is set, and send messages in a thread beside that."""
        arguments = stop, self._holds
        sender = threading.Thread(target=self._delivery.run, args=arguments, name="alert-webhooks", daemon=True)
        sender.start()
        while not stop.wait(self._rules.every_s):
            try:
                if self._holds():
                    self.evaluate()
            except Exception:  # most likely the store
                logger.warning("The alerts couldn't be evaluated; the next attempt follows", exc_info=True)
        sender.join(5)
        try:
            self._store.release_lease(self._owner)
        except Exception:
            logger.debug("The lease of alerts runs out by itself", exc_info=True)

    def _holds(self) -> bool:
        return self._store.hold_lease(self._owner, 3 * self._rules.every_s + 60)

    def evaluate(self) -> None:
        """Open alerts for what is wrong, and end those that are over."""
        open_kinds = self._store.open_keys()
        open_models = [key.partition(":")[2] for key, kind in open_kinds.items() if kind in OF_MODELS]
        of_service, unknown = self._service.find()
        findings = [*self._jobs.find(open_models), *of_service]
        present = {finding.key for finding in findings}
        new = [finding for finding in findings if finding.key not in open_kinds]
        if new:
            for row in self._store.open(new, self._webhooks):
                logger.warning("Alert: %s. %s", row.title, row.cause)
        for key, kind in open_kinds.items():
            self._absent[key] = 0 if key in present or kind in unknown else self._absent[key] + 1
        over = [key for key in open_kinds if self._absent[key] >= ABSENCES]
        if over:
            for row in self._store.resolve(over, self._webhooks):
                logger.info("Alert is over: %s", row.title)
        for key in [key for key in self._absent if key not in open_kinds or key in over]:
            del self._absent[key]
        if new or over:
            self._delivery.wake()
        self._num_evaluations += 1
        if self._num_evaluations % CLEAN_EVERY == 1:
            self._store.forget(self._store.now() - timedelta(seconds=self._rules.keep_resolved_s))
