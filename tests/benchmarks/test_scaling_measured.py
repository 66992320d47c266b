"""Measurements become constants, tables and predictions, checked with hand-made numbers."""

import json
import os
import time
from dataclasses import replace

import pytest
from queueing.costs import Linear
from queueing.measured import costs_of, fit, table_of
from queueing.page import write_tables
from queueing.plots import plot_all
from queueing.tables import tables_of
from queueing.timing import measure, usage
from queueing.validation import slowdown, validate
from scaling import PAGE, RESULTS
from test_scaling_service import FREE


def test_a_line_is_recovered():
    line = fit([(1, 5), (10, 23), (100, 203)])  # 3 + 2 x
    assert (line.fixed, line.each) == pytest.approx((3, 2))


def test_costs_are_never_negative():
    assert fit([(1, 1), (2, 3)]) == Linear(0.0, pytest.approx((1 / 1 + 2 / 3) / (1 + 4 / 9)))  # not -1 + 2 x
    assert fit([(1, 2), (2, 1)]) == Linear(pytest.approx((1 / 2 + 1) / (1 / 4 + 1)), 0.0)  # not 3 - x


def test_slower_processes_scale_times_but_not_amounts():
    slow = replace(FREE, proxy=Linear(1, 2), step_s=3, gradient_bytes=5).slowed(2)
    assert (slow.proxy, slow.step_s, slow.engine_tokens_per_s, slow.gradient_bytes) == (Linear(2, 4), 6, 50, 5)


def timing(seconds, **more):
    return {**more, "free_s": seconds, "low_s": seconds, "high_s": seconds, "wall_s": seconds, "repeats": 1}


def measurements():
    """Measurements of a service whose costs are round numbers."""
    kinds = ("find_key", "resolve", "versions", "claim", "started", "gradient_step", "renew", "complete")
    store = [timing(0.004, kind=kind) for kind in kinds]
    completions = [
        {"requests": 10, "at_once": at_once, "completions": completions, "tokens": 10,
         "core_s": {"proxy": 10 * (0.01 + 1e-5 * completions * 10), "api": 0.0, "engine": 10 * 0.02,
                    "core": 100 * completions * (0.001 + 0.01 / (at_once * completions))}}
        for at_once, completions in ((1, 1), (8, 1), (8, 8))
    ]  # fmt: skip
    busy = {"api": 6.0, "core": 4.0}
    loop = {
        "runs": 1, "groups": 2, "completions": 8, "tokens": 10, "packed_length": 256, "jobs_per_s": 0.5,
        "rollouts_per_s": 8.0, "median_rollouts_s": 1.0, "median_accept_s": 0.1, "median_version_s": 1.0,
        "core_s": busy, "waited_s": {"api": 6.0, "core": 0.0},
    }  # fmt: skip
    return {
        "parts": {
            "tiny": {"prompt_tokens": 19, "adapter_bytes": 100}, "store_sqlite": store, "store_postgresql": store,
            "payloads": [timing(t * 0.001 + n * 1e-5, kind=kind, trajectories=t, tokens=n)
                         for kind in ("receive", "prepare") for t, n in ((8, 100), (8, 1000), (80, 1000))],
            "checkpoints": [timing(0.01 + mb * 0.002, kind=kind, megabytes=mb)
                            for kind in ("write", "read") for mb in (1, 10, 100)],
            "learner": [timing(0.01 + 1e-4 * tokens, tokens=tokens) for tokens in (100, 1000)],
        },
        "service": {
            "completions": completions, "looks": [{"requests": 10, "core_s": {"proxy": 0.02, "api": 0.05}}],
            "jobs": [{"gradient_steps": n, "core_s": {"coordinator": 0.1 + 0.01 * n}} for n in (1, 10)],
            "loops": [loop],
        },
    }  # fmt: skip


def test_constants_of_a_service_of_round_numbers():
    costs = costs_of(measurements())
    assert costs.proxy.of(80) == pytest.approx(0.0108)
    assert costs.engine_tokens_per_s == pytest.approx(
        1000
    )  # 1 ms per token, and 10 ms shared by those decoded together
    assert costs.engine_half == pytest.approx(10)
    assert (costs.prepare.fixed, costs.prepare.each) == pytest.approx((0.001, 1e-5))
    assert costs.save.of(50e6) == pytest.approx(0.11)
    assert costs.step_s == pytest.approx(0.0108)  # a call of an actor beside the step itself
    assert costs.job_small_s == pytest.approx(0.1 - 3 * 0.004)  # claim, started, complete
    # 1 MB in 2.9 ms and 10 MB in 13 ms: 0.891 GB/s, and 1.78 ms for two hops
    assert costs.allreduce_bytes_per_s == pytest.approx(9e6 / 10.1e-3)
    assert costs.allreduce_latency_s == pytest.approx((2.9e-3 - 1e6 / (9e6 / 10.1e-3)) / 2)


def test_the_table_of_constants_has_their_units():
    values = {row["constant"]: row["value"] for row in table_of(measurements())}
    assert values["completion in Serve's proxy"] == "10.0 ms + 10 µs/token"
    assert values["engine, n sequences at once"] == "1,000 n / (n + 10) token/s"
    assert values["saving a checkpoint (hash, write, sync)"] == "10.0 ms + 2 ms/MB"
    assert values["claiming a job, SQLite"] == "4.0 ms (4.0 to 4.0)"


def test_predictions_assume_own_cores_or_the_measured_ones():
    found = measurements()
    [loop] = found["service"]["loops"]
    assert slowdown(loop) == 2  # the API used the most CPU, 6 s, and waited as long for a core
    found["service"] |= {"completions": [], "jobs": []}
    costs = costs_of(measurements())
    [row] = validate(costs, found)
    # Everything takes twice as long except polls of 0.2 s.
    assert row["predicted, own cores"] / 2 < row["predicted, slowed"] < row["predicted, own cores"]
    assert (row["measured"], row["error"]) == (0.5, pytest.approx(row["predicted, slowed"] / 0.5 - 1))


def test_sleep_counts_as_time_and_work_as_cpu_time():
    assert measure(lambda: time.sleep(0.02), 3).free_s >= 0.019

    def busy():
        end = time.thread_time() + 0.2
        while time.thread_time() < end:
            pass

    before = usage([os.getpid()])
    busy()
    assert (usage([os.getpid()]) - before).ran_s >= 0.1  # the kernel's count lags by at least a tick


def test_tables_replace_their_places_in_the_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- runs: written by benchmarks/scaling.py -->\nold\n<!-- end -->\nb\n")
    write_tables(page, {"runs": [{"engines": 1, "jobs/s": 0.12345}, {"engines": 64, "jobs/s": 1234.5}]})
    assert page.read_text() == (
        "a\n<!-- runs: written by benchmarks/scaling.py -->\n| engines | jobs/s |\n|--:|--:|\n| 1 | 0.123 |\n"
        "| 64 | 1,234 |\n<!-- end -->\nb\n"
    )
    with pytest.raises(ValueError, match="0 places for the table 'other'"):
        write_tables(page, {"other": [{"a": 1}]})


def test_the_page_and_its_pictures_show_the_results(tmp_path):
    outcome = json.loads((RESULTS / "scaling.json").read_text())
    page = tmp_path / "scale.md"
    page.write_text(PAGE.read_text())
    write_tables(page, tables_of(outcome))
    assert page.read_text() == PAGE.read_text()
    plot_all(outcome, tmp_path)
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert drawn == {path.name for path in RESULTS.glob("scaling_*.png")}


def test_the_simulation_still_predicts_what_the_results_say():
    """Fails when a setting that it reads from the service changes: then `scaling.py simulate` has to run again."""
    measured = json.loads((RESULTS / "scaling_measured.json").read_text())
    outcome = json.loads((RESULTS / "scaling.json").read_text())
    assert table_of(measured) == outcome["constants"]
    for row, shown in zip(validate(costs_of(measured), measured), outcome["validation"], strict=True):
        assert row == {name: pytest.approx(v, rel=1e-3) if isinstance(v, float) else v for name, v in shown.items()}
