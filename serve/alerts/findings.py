"""One thing that is wrong now, as the rules find it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tandem.cluster.config.observability import AlertKind

Severity = Literal["critical", "warning"]


@dataclass(frozen=True)
class Finding:
    """Equal keys are the same alert, however its sentences change."""

    kind: AlertKind
    subject: str
    """What it is about, unique within the kind: an id, or the name of a base model."""
    title: str
    cause: str
    remedy: str
    entity: str | None = None
    """Whose alert it is. None: of the whole service, for admins."""
    severity: Severity = "warning"
    links: dict[str, str | int] = field(default_factory=dict)
    """model_id, model, job_id, step, base_model: where to look."""

    @property
    def key(self) -> str:
        return f"{self.kind}:{self.subject}"
