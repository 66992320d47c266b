"""The constants of the simulation, computed from measurements, each with its source."""

from __future__ import annotations

from collections.abc import Iterable
from statistics import median
from typing import Any

import numpy as np

from queueing.costs import Costs, Linear

Record = dict[str, Any]
ALLREDUCE_S = {1e6: 2.9e-3, 10e6: 13e-3}
"""By bytes: torch.distributed.all_reduce on gloo between two Ray actors on one idle machine."""
ADAPTER_LOAD_S = 0.005
"""vLLM's add_lora of a tiny adapter: 4 to 6 ms over 50 versions in one engine, on an idle machine."""
RAY_CALL_S = 0.0008
"""A call of an actor's method and its answer, on an idle machine."""
ENGINE_MAX_SEQS = 64
"""max_num_seqs of an engine on a CPU."""
FIXED_WRITES = ("claim", "started", "complete")
"""Store transactions of a job's coordinator, apart from those of its gradient steps."""


def fit(points: Iterable[tuple[float, float]]) -> Linear:
    """Fit seconds to amounts by least squares of relative errors, with non-negative coefficients."""
    amounts, seconds = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    weighted = np.stack([1 / seconds, amounts / seconds], axis=1)
    (fixed, each), *_ = np.linalg.lstsq(weighted, np.ones_like(seconds), rcond=None)
    if fixed >= 0 and each >= 0:
        return Linear(float(fixed), float(each))
    ratios = amounts / seconds if fixed < 0 else 1 / seconds
    alone = float(ratios.sum() / (ratios**2).sum())
    return Linear(0.0, alone) if fixed < 0 else Linear(alone, 0.0)


def costs_of(measured: Record) -> Costs:
    """Return the costs of the tiny model if each process has a core to itself."""
    parts, service = measured["parts"], measured["service"]
    completions, looks = service["completions"], service["looks"]
    engine = fit((1 / _open(r), r["core_s"]["core"] / _tokens(r)) for r in completions)
    learner = fit((r["tokens"], r["free_s"]) for r in parts["learner"])
    hop_s, bytes_per_s = _ring()
    adapter_bytes = parts["tiny"]["adapter_bytes"]
    return Costs(
        proxy=_per_request(completions, "proxy"),
        proxy_small_s=median(r["core_s"]["proxy"] / r["requests"] for r in looks),
        api_small_s=median(r["core_s"]["api"] / r["requests"] for r in looks),
        api_poll_s=_of_kind(parts["store_sqlite"], "versions"),
        front=_per_request(completions, "engine"),
        engine_tokens_per_s=1 / engine.fixed,
        engine_half=engine.each / engine.fixed,
        engine_max_seqs=ENGINE_MAX_SEQS,
        adapter_load_s=ADAPTER_LOAD_S,
        receive_token_s=fit((r["tokens"], r["free_s"]) for r in _kind(parts["payloads"], "receive")).each,
        prepare=_preparation(_kind(parts["payloads"], "prepare")),
        learner_token_s=learner.each,
        step_s=learner.fixed + RAY_CALL_S,
        allreduce_latency_s=hop_s,
        allreduce_bytes_per_s=bytes_per_s,
        gradient_bytes=adapter_bytes,
        checkpoint_bytes=3 * adapter_bytes,
        pulled_bytes=adapter_bytes,
        save=_checkpoints(parts, "write"),
        load=_checkpoints(parts, "read"),
        store_write_s=_of_kind(parts["store_sqlite"], "gradient_step"),
        job_small_s=_job_small(parts, service["jobs"]),
    )


SERVICE, PARTS, IDLE = "service", "parts", "idle"
"""Sources of constants: `scaling.py measure-service`, `scaling.py measure`, or by hand on an idle machine."""


def table_of(measured: Record) -> list[Record]:
    """Return the constants as table rows: values with units, and quartiles if known."""
    costs, parts = costs_of(measured), measured["parts"]

    def transaction(kind: str, store: str = "store_sqlite") -> str:
        [record] = _kind(parts[store], kind)
        return f"{record['free_s'] * 1e3:.1f} ms ({record['low_s'] * 1e3:.1f} to {record['high_s'] * 1e3:.1f})"

    rows = (
        ("completion in Serve's proxy", _line(costs.proxy, 1e6, "µs/token"), SERVICE),
        ("completion in the engine's own process", _line(costs.front, 1e6, "µs/token"), SERVICE),
        ("engine, n sequences at once", f"{costs.engine_tokens_per_s:,.0f} n / (n + {costs.engine_half:.0f}) token/s",
         SERVICE),
        ("small request: proxy, API replica", f"{costs.proxy_small_s * 1e3:.1f}, {costs.api_small_s * 1e3:.1f} ms",
         SERVICE),
        ("a job in the coordinator, without its transactions", f"{costs.job_small_s * 1e3:.0f} ms", SERVICE),
        ("store read for a waiting client", transaction("versions"), PARTS),
        ("SQLite write (event of a gradient step)", transaction("gradient_step"), PARTS),
        ("PostgreSQL write, one client", transaction("gradient_step", "store_postgresql"), PARTS),
        ("claiming a job, SQLite", transaction("claim"), PARTS),
        ("receiving a job", f"{costs.receive_token_s * 1e6:.1f} µs/token", PARTS),
        ("preparing a trajectory", _line(costs.prepare, 1e6, "µs/token"), PARTS),
        ("gradient step, tiny model", _line(Linear(costs.step_s, costs.learner_token_s), 1e6, "µs/token"), PARTS),
        ("saving a checkpoint (hash, write, sync)", _line(costs.save, 1e9, "ms/MB"), PARTS),
        ("loading a checkpoint (read, verify)", _line(costs.load, 1e9, "ms/MB"), PARTS),
        ("all-reduce, gloo",
         f"{costs.allreduce_latency_s * 1e3:.1f} ms/hop, {costs.allreduce_bytes_per_s / 1e9:.2f} GB/s", IDLE),
        ("loading an adapter into vLLM; calling an actor",
         f"{costs.adapter_load_s * 1e3:.0f} ms; {RAY_CALL_S * 1e3:.1f} ms", IDLE),
    )  # fmt: skip
    return [{"constant": name, "value": value, "from": source} for name, value, source in rows]


def _line(cost: Linear, factor: float, unit: str) -> str:
    return f"{cost.fixed * 1e3:.1f} ms + {float(f'{cost.each * factor:.2g}'):g} {unit}"


def _kind(records: list[Record], kind: str) -> list[Record]:
    return [record for record in records if record["kind"] == kind]


def _of_kind(records: list[Record], kind: str) -> float:
    [record] = _kind(records, kind)
    return float(record["free_s"])


def _open(record: Record) -> int:
    """Return the number of sequences decoded together."""
    return int(record["at_once"] * record["completions"])


def _tokens(record: Record) -> int:
    """Return the tokens of all answers."""
    return int(record["requests"] * record["completions"] * record["tokens"])


def _per_request(completions: list[Record], role: str) -> Linear:
    return fit((r["completions"] * r["tokens"], r["core_s"][role] / r["requests"]) for r in completions)


def _checkpoints(parts: Record, kind: str) -> Linear:
    return fit((r["megabytes"] * 1e6, r["free_s"]) for r in _kind(parts["checkpoints"], kind))


def _preparation(records: list[Record]) -> Linear:
    """Fit seconds to trajectories and tokens."""
    amounts = np.array([[r["trajectories"], r["tokens"]] for r in records], dtype=float)
    seconds = np.array([r["free_s"] for r in records])
    (fixed, each), *_ = np.linalg.lstsq(amounts / seconds[:, None], np.ones_like(seconds), rcond=None)
    return Linear(float(fixed), float(each))


def _ring() -> tuple[float, float]:
    """Return a hop's latency and the bandwidth. A ring of two learners makes two hops of half the bytes each."""
    (small, small_s), (large, large_s) = ALLREDUCE_S.items()
    bytes_per_s = (large - small) / (large_s - small_s)
    return (small_s - small / bytes_per_s) / 2, bytes_per_s


def _job_small(parts: Record, jobs: list[Record]) -> float:
    """Return the coordinator's time per job without transactions, which the simulation counts at the store."""
    per_step = fit((r["gradient_steps"], r["core_s"]["coordinator"]) for r in jobs)
    writes = sum(_of_kind(parts["store_sqlite"], kind) for kind in FIXED_WRITES)
    return max(0.0, per_step.fixed - writes)
