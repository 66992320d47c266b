"""The configuration of logs, traces and alerts."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from tandem.cluster.config.values import Seconds
from tandem.rl.settings import Settings

MIN_SECRET = 16
SECRET_PREFIX = "whsec_"
AlertKind = Literal[
    "reward_collapse",
    "stuck_job",
    "stalled_queue",
    "failed_jobs",
    "logprob_mismatch",
    "version_refused",
    "engine_unhealthy",
    "learners_not_started",
    "coordinator_failed",
    "disk_nearly_full",
]


def _http_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_valid = False
    if not is_valid or parts.username or parts.password or any(c.isspace() or not c.isprintable() for c in url):
        # The address isn't repeated: those of chat services are secrets.
        raise ValueError("it must be an address like https://host/path, without user or password")
    return url


class LoggingConfig(Settings):
    """The log lines of all processes, on their stderr: Ray keeps it in a file for each process."""

    format: Literal["text", "json"] = Field(
        "text", description="text for people; json: one object per line, with time, level, message and ids."
    )
    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lines of Tandem below this level are left out. debug has also a line for each read."
    )


class TracingConfig(Settings):
    """Traces in OpenTelemetry's form. Without this section, nothing is traced and no library is loaded."""

    endpoint: str = Field(description="Address of an OTLP/HTTP collector for traces: http://host:4318/v1/traces.")
    headers: dict[str, str] = Field(
        {}, repr=False, description="Sent with each request to the collector, like Authorization."
    )
    sample_ratio: float = Field(
        1.0, ge=0, le=1, description="Share of traces that begin here which are sent. A caller's own decision holds."
    )
    timeout_s: Seconds = Field(5.0, gt=0, description="For one request to the collector, in the background.")
    max_queue: int = Field(
        2048, ge=64, description="Spans that wait in a process for the collector; more are dropped and counted."
    )

    @field_validator("endpoint")
    @classmethod
    def _valid(cls, url: str) -> str:
        return _http_url(url)


class WebhookConfig(Settings):
    """An address that gets a POST when an alert opens and when it is over."""

    url: str = Field(repr=False, description="http or https address. Redirects aren't followed.")
    events: tuple[AlertKind, ...] | None = Field(None, description="Kinds of alerts to send. Unset: all.")
    secret: str | None = Field(
        None,
        repr=False,
        description="Signs each message (Standard Webhooks, HMAC-SHA256): whsec_ and base64, or any 16 characters or "
        "more.",
    )
    format: Literal["json", "slack"] = Field("json", description="slack: the message of Slack's incoming webhooks.")

    @field_validator("url")
    @classmethod
    def _valid(cls, url: str) -> str:
        return _http_url(url)

    @field_validator("secret")
    @classmethod
    def _long_enough(cls, secret: str | None) -> str | None:
        if secret is not None and len(signing_key(secret)) < MIN_SECRET:
            raise ValueError(f"it has fewer than {MIN_SECRET} bytes; make one with `openssl rand -base64 32`")
        return secret

    @property
    def shown(self) -> str:
        """The host alone: the path of a chat service's address is a secret."""
        return urlsplit(self.url).hostname or ""


def signing_key(secret: str) -> bytes:
    """Return the bytes of a secret. Raises ValueError if it begins with whsec_ and isn't base64."""
    if not secret.startswith(SECRET_PREFIX):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
    except binascii.Error:
        raise ValueError("after whsec_ it must be base64") from None


Period = Annotated[Seconds, Field(gt=0)]


class AlertRulesConfig(Settings):
    """When something is an alert. Durations are in seconds."""

    every_s: Period = Field(15.0, description="How often the rules are evaluated.")
    reward_window: int = Field(
        5, ge=2, le=100, description="Versions of a moving mean of the reward; a rule needs twice as many."
    )
    reward_drop: float = Field(
        0.5,
        gt=0,
        description="Fall of the newest moving mean below the best earlier one, as a share of the best, that is a "
        "collapse.",
    )
    reward_noise: float = Field(
        6.0,
        ge=0,
        description="The fall must also exceed this many standard errors of a moving mean, from the differences "
        "between neighbouring versions.",
    )
    stuck_job_s: Period = Field(3600.0, description="A running job without an event for this long.")
    stalled_queue_s: Period = Field(
        1800.0, description="A queued job for this long, while no job of its base model was claimed or made progress."
    )
    failed_jobs: int = Field(3, ge=1, le=100, description="Jobs of a model that fail one after the other.")
    engine_fault_s: Period = Field(
        60.0, description="An engine's fault for this long. At the start of a service, deadlines.start_engine_s."
    )
    learners_s: Period = Field(300.0, description="Learners that can't start for this long.")
    coordinator_s: Period = Field(60.0, description="A coordinator that doesn't answer or fails for this long.")
    free_disk_bytes: int = Field(
        5 << 30, ge=0, description="Free space on the disk of the artifacts below which it is nearly full."
    )
    webhook_timeout_s: Period = Field(10.0, description="For one POST to a webhook.")
    webhook_deadline_s: Period = Field(86400.0, description="A message is given up after this long.")
    keep_resolved_s: Seconds = Field(30 * 86400.0, gt=0, description="Alerts that are over are kept for this long.")
