"""Live state as a caller may see it: versions and jobs of others are numbers, and errors are for admin keys."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal

from tandem.cluster.config import BaseModelConfig
from tandem.cluster.learners.group_state import LearnerState
from tandem.serve.observing import wire
from tandem.serve.observing.cluster_state import BaseEngines, BaseLearners, Life, Replica
from tandem.serve.store.training.live_state import OwnVersion

_State = Literal["running", "waiting", "not_started", "not_answering"]
_SERVES = ("running", "asleep")
_FAULTS = {
    "starting": "It is starting and loads the base model.",
    "not_answering": "It doesn't answer. Ray Serve replaces it if that lasts.",
    "unhealthy": "Its vLLM core has died. Ray Serve replaces the replica.",
    "stopping": "It ends its open completions and stops.",
}
_ENDED = {
    "stopped": "Ray Serve stopped it: for an update, to scale down, or because it failed its health checks.",
    "died": "Its vLLM core died, or it didn't start. Its log has the cause.",
    "lost": "It ended without a word: its process was killed, or its node was lost.",
}
_NOT_ANSWERING = "The coordinator doesn't answer; jobs wait until it is back."


def digests_of(engines: BaseEngines) -> list[str]:
    """Return the digests of all versions that replicas hold."""
    return [
        digest
        for replica in engines.replicas
        if replica.answer and replica.answer["load"]
        for digest in replica.answer["load"]["adapters"]
    ]


def engines_view(
    base: BaseModelConfig, engines: BaseEngines, own: Sequence[OwnVersion], sees_errors: bool
) -> wire.Engines:
    """Return the engines of a base model for a caller whose versions are `own`."""
    replicas = [_replica(replica, own, sees_errors) for replica in engines.replicas]
    sizes = next((replica.answer for replica in engines.replicas if replica.answer), None)
    settings = base.engine
    return wire.Engines(
        id=base.name,
        num_wanted=engines.num_wanted,
        num_running=sum(replica.condition in _SERVES for replica in replicas),
        fault=engines.fault,
        replicas=replicas,
        num_restarts=sum(life.ending != "stopped" for life in engines.ended),
        ended=[_ended(life, sees_errors) for life in engines.ended],
        settings=wire.EngineSettings(
            replicas=settings.replicas,
            dtype=sizes["dtype"] if sizes else settings.dtype,
            tensor_parallel_size=settings.tensor_parallel_size,
            max_model_len=sizes["max_model_len"] if sizes else base.max_model_len,
            max_num_seqs=sizes["max_num_seqs"] if sizes else settings.max_num_seqs,
            max_loras=settings.max_loras,
            max_cpu_loras=settings.max_cpu_loras,
            sleep=settings.sleep,
        ),
    )


def _replica(replica: Replica, own: Sequence[OwnVersion], sees_errors: bool) -> wire.EngineReplica:
    answer = replica.answer
    load = answer["load"] if answer else None
    held = set(load["adapters"]) if load else set()
    mine = [version for version in own if version.digest in held]
    started_at = answer["started_at"] if answer else replica.started_at
    fault = _FAULTS.get(replica.condition)
    if answer and answer["error"] and sees_errors:
        fault = answer["error"]
    return wire.EngineReplica(
        id=replica.id,
        node=replica.node,
        condition=replica.condition,
        fault=fault,
        started_at=_time(started_at),
        device=answer and answer["device"],
        requests_running=load and load["num_running"],
        requests_waiting=load and load["num_waiting"],
        kv_usage=load and load["kv_usage"],
        kv_tokens=answer and answer["kv_tokens"],
        prefix_hit_rate=load and load["prefix_hit_rate"],
        slots=load and load["slots"],
        slots_used=load and load["slots_used"],
        adapters=len(held) if load else None,
        adapter_capacity=load and load["adapter_capacity"],
        own_versions=[wire.LoadedVersion(model_id=v.model_id, model=v.model, step=v.step) for v in mine],
        other_versions=len(held - {version.digest for version in mine}) if load else None,
        tokens_sampled=answer and answer["counts"]["sampled_tokens"],
        tokens_prompt=answer and answer["counts"]["prompt_tokens"],
        gpu_memory=wire.GpuMemory(**answer["gpu_memory"]) if answer and answer["gpu_memory"] else None,
        memory_plan=wire.MemoryPlan(**answer["plan"]) if answer and answer["plan"] else None,
    )


def _ended(life: Life, sees_errors: bool) -> wire.EndedReplica:
    assert life.ending is not None, "it ended"
    started_at = _time(life.started_at)
    assert started_at is not None
    return wire.EndedReplica(
        id=life.replica,
        node=life.node,
        started_at=started_at,
        ended_at=_time(life.ended_at),
        ending=life.ending,
        sentence=life.reason if life.reason and sees_errors else _ENDED[life.ending],
    )


def learners_view(
    base: BaseModelConfig, found: BaseLearners | None, own: Mapping[str, str], sees_errors: bool
) -> wire.Learners:
    """Return the learners of a base model for a caller. `own` maps the ids of the caller's jobs to their models.

    `found` is None if the coordinator doesn't answer.
    """
    status = found["status"] if found else None
    state, sentence = _state_of(found)
    running = status["running_jobs"] if status else []
    return wire.Learners(
        id=base.name,
        state=state,
        sentence=sentence,
        waiting_for=status["waiting_for"] if status else None,
        alarm=status["alarm"] if status else None,
        last_error=status["last_error"] if status and sees_errors else None,
        learners=[_learner(learner) for learner in found["learners"]] if found else [],
        own_jobs=[wire.OwnJob(job_id=id, model_id=own[id]) for id in running if id in own],
        other_jobs=sum(id not in own for id in running),
        publications=_publications(found["publish_s"] if found else []),
        settings=wire.LearnerSettings(
            count=base.learners.count,
            shard=base.learners.shard,
            jobs_at_once=base.learners.jobs_at_once,
            device=base.learners.device,
            dtype=base.learners.dtype,
            lora_r=base.lora.r,
            lora_alpha=base.lora.alpha,
            lora_target_modules=list(base.lora.target_modules),
        ),
    )


def _state_of(found: BaseLearners | None) -> tuple[_State, str]:
    if found is None:
        return "not_answering", _NOT_ANSWERING
    status = found["status"]
    if status["waiting_for"]:
        return "waiting", f"The learners can't start yet: {status['waiting_for']}"
    if status["learners_running"]:
        counts = {"job": len(status["running_jobs"]), "training client": len(status["running_runs"])}
        users = " and ".join(f"{count} {what}{'s' * (count != 1)}" for what, count in counts.items() if count)
        return "running", f"The learners work for {users}." if users else "The learners are free."
    return "not_started", "The learners start with the next job."


def _learner(learner: LearnerState) -> wire.Learner:
    measured = learner["measured"]
    return wire.Learner(
        rank=learner["rank"],
        node=learner["node"],
        gpus=learner["gpus"],
        is_answering=measured is not None,
        device=measured and measured["device"],
        tokens_per_s=measured and measured["tokens_per_s"],
        mfu=measured and measured["mfu"],
        memory=wire.LearnerGpuMemory(**measured["memory"]) if measured and measured["memory"] else None,
    )


def _publications(seconds: Sequence[float]) -> wire.Publications:
    return wire.Publications(
        count=len(seconds),
        last_s=seconds[-1] if seconds else None,
        p50_s=quantile(seconds, 0.5),
        p95_s=quantile(seconds, 0.95),
    )


def quantile(values: Sequence[float], fraction: float) -> float | None:
    """Return the smallest value that at least this fraction of the values doesn't exceed; None without values."""
    if not values:
        return None
    return sorted(values)[max(0, math.ceil(fraction * len(values)) - 1)]


def _time(seconds: float | None) -> datetime | None:
    return datetime.fromtimestamp(seconds, UTC) if seconds is not None else None
