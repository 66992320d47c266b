"""Rules about the parts of the service: engines, learners, coordinator, disk."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy import select

from tandem.cluster.artifacts import Artifacts
from tandem.cluster.config import TandemConfig
from tandem.cluster.config.observability import AlertKind
from tandem.serve.alerts.findings import Finding
from tandem.serve.api.services import CoordinatorStatus, EngineFault
from tandem.serve.store.database import Database
from tandem.serve.store.tables.training import ModelRow, VersionRow

logger = logging.getLogger(__name__)
COORDINATOR = "coordinator"


@dataclass(frozen=True)
class EngineState:
    fault: EngineFault | None
    refused: tuple[str, ...] = ()
    """Digests of versions whose completions the engine rejects."""


class Probe(Protocol):
    """Asks the parts of the service how they are. Calls take a few seconds at most."""

    def engines(self) -> Mapping[str, EngineState]:
        """Return the state of each base model's engines. Raises if Ray Serve doesn't say."""

    def coordinator(self) -> Mapping[str, CoordinatorStatus]:
        """Return the status of each base model's coordinator. Raises if it doesn't answer."""


class ServiceRules:
    """Evaluates the rules; `find` in intervals. A fault is a finding once it has lasted as long as its rule says."""

    def __init__(
        self,
        config: TandemConfig,
        database: Database,
        artifacts: Artifacts,
        probe: Probe,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._config, self._rules, self._database = config, config.alert_rules, database
        self._artifacts, self._probe, self._clock = artifacts, probe, clock
        self._since: dict[str, float] = {}
        """When each fault began."""
        self._were_well: set[str] = set()
        """Base models whose engines have run since this process started, and the coordinator once it has answered."""
        self._silent: set[tuple[AlertKind, ...]] = set()
        """Parts that couldn't be asked last time."""

    def find(self) -> tuple[list[Finding], set[AlertKind]]:
        """Return what is wrong, and the kinds about which nothing is known now."""
        findings: list[Finding] = []
        unknown: set[AlertKind] = set()
        parts: tuple[tuple[Callable[[], Iterable[Finding]], tuple[AlertKind, ...]], ...] = (
            (self._engines, ("engine_unhealthy", "version_refused")),
            (self._coordinator, ("coordinator_failed", "learners_not_started")),
            (self._disk, ("disk_nearly_full",)),
        )
        for part, kinds in parts:
            try:
                findings += part()
                self._silent.discard(kinds)
            except Exception as error:
                if kinds not in self._silent:
                    logger.info("Nothing is known about %s now: %r", ", ".join(kinds), error)
                self._silent.add(kinds)
                unknown.update(kinds)
        return findings, unknown

    def _lasts(self, key: str, holds: bool, for_s: float) -> bool:
        """Return whether a fault holds, and has held for this long."""
        if not holds:
            self._since.pop(key, None)
            return False
        return self._clock() - self._since.setdefault(key, self._clock()) >= for_s

    def _engines(self) -> Iterable[Finding]:
        found = []
        for base, state in self._probe.engines().items():
            is_faulty = state.fault is not None
            if not is_faulty:
                self._were_well.add(base)
            is_starting = base not in self._were_well
            patience_s = self._config.deadlines.start_engine_s if is_starting else self._rules.engine_fault_s
            if self._lasts(f"engine {base}", is_faulty, patience_s) and state.fault is not None:
                found.append(
                    Finding(
                        kind="engine_unhealthy",
                        subject=base,
                        severity="critical" if state.fault.completions_wait else "warning",
                        title=f"The engine of {base} isn't healthy",
                        cause=f"{base}: {state.fault}",
                        remedy="Read the engine's log (its worker's files in Ray's log directory). Ray Serve replaces "
                        "an engine that fails; one that can't start again needs memory, a GPU or a node.",
                        links={"base_model": base},
                    )
                )
            found += self._refused(base, state.refused)
        return found

    def _refused(self, base: str, digests: tuple[str, ...]) -> Iterable[Finding]:
        if not digests:
            return
        query = select(VersionRow.step, VersionRow.digest, ModelRow).join(ModelRow, ModelRow.id == VersionRow.model_id)
        query = query.where(VersionRow.digest.in_(digests), VersionRow.deleted_at.is_(None))
        with self._database.read() as session:
            rows = session.execute(query.where(ModelRow.deleted_at.is_(None))).all()
        for step, digest, model in rows:
            yield Finding(
                kind="version_refused",
                subject=f"{model.id}:{step}",
                entity=model.entity,
                severity="critical",
                title=f"The engine refuses version {step} of {model.path}",
                cause=f"The logits of version {step} ({digest[:12]}) aren't finite on the engine of {base}, so that "
                "its completions are rejected.",
                remedy=f"Its training has probably diverged. Request an earlier version ({model.path}:stepN), or fork "
                "the model from one and train with a lower learning rate.",
                links={"model_id": model.id, "model": model.path, "step": step, "base_model": base},
            )

    def _coordinator(self) -> Iterable[Finding]:
        try:
            statuses = self._probe.coordinator()
        except Exception as error:
            starts_s = self._config.deadlines.prepare_s  # in which a coordinator makes version 0
            patience_s = self._rules.coordinator_s + (0 if COORDINATOR in self._were_well else starts_s)
            if not self._lasts(COORDINATOR, True, patience_s):
                raise
            logger.warning("The coordinator doesn't answer: %r", error)
            return [
                Finding(
                    kind="coordinator_failed",
                    subject=COORDINATOR,
                    severity="critical",
                    title="The coordinator doesn't answer",
                    cause=f"It hasn't answered for {patience_s:g} s. Jobs wait; completions continue.",
                    remedy="Ray Serve replaces it. If that takes minutes, read its log and check the nodes' memory.",
                )
            ]
        self._lasts(COORDINATOR, False, 0)
        self._were_well.add(COORDINATOR)
        return [finding for base, status in statuses.items() for finding in self._of_base(base, status)]

    def _of_base(self, base: str, status: CoordinatorStatus) -> Iterable[Finding]:
        rules, links = self._rules, {"base_model": base}
        if self._lasts(f"error {base}", bool(status["last_error"]), rules.coordinator_s):
            yield Finding(
                kind="coordinator_failed",
                subject=base,
                severity="critical",
                title=f"The coordinator of {base} fails outside jobs",
                cause=f"It has failed for {rules.coordinator_s:g} s and retries: {status['last_error']}",
                remedy="It is most likely the store: check that it answers and has space.",
                links={**links},
            )
        if self._lasts(f"learners {base}", bool(status["waiting_for"]), rules.learners_s):
            yield Finding(
                kind="learners_not_started",
                subject=base,
                severity="critical",
                title=f"The learners of {base} can't start",
                cause=f"They have waited for {rules.learners_s:g} s: {status['waiting_for']}",
                remedy="Add nodes, or lower learners.count or what learners and engines ask for. `tandem doctor` "
                "compares a configuration with a machine.",
                links={**links},
            )
        if status["alarm"]:
            is_running = status["learners_running"]
            yield Finding(
                kind="logprob_mismatch" if is_running else "learners_not_started",
                subject=base if is_running else f"{base} refused",
                severity="critical",
                title=f"Engine and learners of {base} disagree" if is_running else f"The learners reject {base}",
                cause=str(status["alarm"]),
                remedy="Use a base model that engine and learners compute alike, or the same dtype for both.",
                links={**links},
            )

    def _disk(self) -> Iterable[Finding]:
        free = self._artifacts.num_free_bytes
        limits, wanted = self._config.limits, self._rules.free_disk_bytes
        if free >= max(wanted, limits.min_free_disk_bytes):
            return []
        is_full = free < limits.min_free_disk_bytes
        return [
            Finding(
                kind="disk_nearly_full",
                subject="artifacts",
                severity="critical" if is_full else "warning",
                title="The disk of the artifacts is nearly full",
                cause=f"{free / 1e9:.2f} GB are free. "
                + (
                    "Jobs and logs are rejected."
                    if is_full
                    else f"Below {limits.min_free_disk_bytes / 1e9:.2f} GB, "
                    "jobs and logs are rejected (limits.min_free_disk_bytes)."
                ),
                remedy="Delete models or versions, set retention.keep_versions, or add space. `tandem retention` shows "
                "what a limit would free.",
            )
        ]
