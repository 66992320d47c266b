"""The metrics of the service: names, kinds, labels and descriptions. docs/observability.md has the same table.

Every label has few values: base models, engine replicas, learner ranks, states, stages, codes, routes and statuses.
Models, entities, keys and jobs are never labels, so a service with thousands of models has no more series than one
with few, and a scrape names no tenant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]
_PHASE_S = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
_REQUEST_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 100.0, 300.0)
_PUBLISH_S = (0.03, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0)


@dataclass(frozen=True)
class Metric:
    name: str
    kind: Kind
    labels: tuple[str, ...]
    description: str
    buckets: tuple[float, ...] = ()
    """Upper bounds, of a histogram."""


_BASE = ("base_model",)
_REPLICA = ("base_model", "replica")
_RANK = ("base_model", "rank")

_ALL = (
    # Jobs, by the coordinator
    Metric("tandem_jobs", "gauge", ("base_model", "state"), "Training jobs that are queued or running."),
    Metric("tandem_jobs_ended_total", "counter", ("base_model", "state"), "Training jobs that ended, by final state."),
    Metric("tandem_queue_head_age_seconds", "gauge", _BASE, "Age of the oldest queued job; 0 without one."),
    Metric("tandem_phase_seconds", "histogram", ("base_model", "phase"), "Seconds of a job's phases.", _PHASE_S),
    Metric(
        "tandem_phase_time_seconds_total", "counter", ("base_model", "phase"), "Seconds of all jobs in a phase, exact."
    ),
    Metric(
        "tandem_job_failures_total",
        "counter",
        ("base_model", "stage", "code"),
        "Failed attempts at a job. code: retried, failed, learners_lost, store_unavailable or unexpected.",
    ),
    Metric("tandem_lease_losses_total", "counter", _BASE, "Attempts given up because another one took the job over."),
    Metric(
        "tandem_publish_seconds",
        "histogram",
        _BASE,
        "From the last gradient step until the version is durable and the engines have it.",
        _PUBLISH_S,
    ),
    # Calls of training loops of clients' own, by the coordinator
    Metric(
        "tandem_calls_total",
        "counter",
        ("base_model", "kind", "outcome"),
        "Calls of runs. outcome: answered, user_error, server_error, or repeated (an attempt whose learners died).",
    ),
    Metric(
        "tandem_call_seconds",
        "histogram",
        ("base_model", "kind"),
        "Seconds of executing a call, with its answer's write.",
        _REQUEST_S,
    ),
    # Tokens
    Metric("tandem_tokens_trained_total", "counter", _BASE, "Trained tokens; one counts once per sequence."),
    Metric("tandem_tokens_sampled_total", "counter", _BASE, "Tokens of completions, without those of scoring."),
    Metric(
        "tandem_tokens_prompt_total",
        "counter",
        _BASE,
        "Prompt tokens of completions, cached ones too.",
    ),
    # Learners
    Metric("tandem_learners_running", "gauge", _BASE, "Learners that have started."),
    Metric("tandem_learner_starts_total", "counter", _BASE, "Starts of the learners, again after each restart."),
    Metric("tandem_learner_tokens_per_second", "gauge", _RANK, "Tokens per second of the last gradient step."),
    Metric("tandem_learner_mfu_ratio", "gauge", _RANK, "Model FLOP utilisation of the last step, on known GPUs."),
    Metric(
        "tandem_learner_gpu_memory_bytes",
        "gauge",
        (*_RANK, "kind"),
        "Memory of torch's allocator. kind: allocated, reserved or peak (most allocated in the last step).",
    ),
    # Engines
    Metric("tandem_engine_up", "gauge", _REPLICA, "1 while the replica's engine core answers, else 0."),
    Metric("tandem_engine_starts_total", "counter", _BASE, "Engine replicas that started, again after each restart."),
    Metric("tandem_engine_requests_running", "gauge", _REPLICA, "Requests in the current batch."),
    Metric("tandem_engine_requests_waiting", "gauge", _REPLICA, "Requests that wait for a place in the batch."),
    Metric("tandem_engine_kv_cache_usage_ratio", "gauge", _REPLICA, "Used fraction of the KV cache."),
    Metric("tandem_engine_prefix_queries_total", "counter", _BASE, "Prompt tokens looked up in the prefix cache."),
    Metric("tandem_engine_prefix_hits_total", "counter", _BASE, "Prompt tokens found in the prefix cache."),
    Metric("tandem_engine_preemptions_total", "counter", _BASE, "Requests set back because the KV cache was full."),
    Metric(
        "tandem_engine_first_token_seconds",
        "histogram",
        _BASE,
        "From a request's arrival in the engine to its first token.",
        _REQUEST_S,
    ),
    Metric("tandem_engine_gpu_memory_bytes", "gauge", (*_REPLICA, "kind"), "Memory of the GPU. kind: used or total."),
    Metric("tandem_engine_adapters", "gauge", _REPLICA, "Policy versions that the replica holds."),
    Metric("tandem_engine_adapter_capacity", "gauge", _REPLICA, "Policy versions that the replica can hold."),
    Metric("tandem_engine_adapter_slots", "gauge", _REPLICA, "Policy versions that one batch can mix."),
    Metric("tandem_engine_adapter_slots_used", "gauge", _REPLICA, "Policy versions in the current batch."),
    Metric("tandem_engine_adapter_loads_total", "counter", ("base_model", "outcome"), "Loads: loaded or failed."),
    Metric(
        "tandem_sample_requests_total",
        "counter",
        ("base_model", "outcome"),
        "Requests for samples through the Tinker API. outcome: sampled, refused (the client's error), full (too many "
        "wait), dropped (the client left, or the engine handed it back) or failed.",
    ),
    Metric("tandem_engine_adapter_evictions_total", "counter", _BASE, "Policy versions dropped for others."),
    # HTTP
    Metric(
        "tandem_http_requests_total",
        "counter",
        ("route", "method", "status", "answered_by"),
        "Answered requests. answered_by: gateway (completions in Serve's proxy) or api.",
    ),
    Metric(
        "tandem_http_request_seconds",
        "histogram",
        ("route", "method", "answered_by"),
        "From a request's arrival to the last byte of its answer.",
        _REQUEST_S,
    ),
    Metric("tandem_webhook_deliveries_total", "counter", ("outcome",), "Alerts sent to webhooks: delivered or failed."),
)
METRICS = {metric.name: metric for metric in _ALL}
