"""The simulated service against hand-worked jobs, conservation laws and bounds of closed queueing networks."""

from dataclasses import replace

import pytest
import simpy
from queueing.costs import Costs, Fleet, Linear, Workload
from queueing.experiments import quantiles, simulate_publication, simulate_rollouts, simulate_runs
from queueing.service import Service

ZERO = Linear(0, 0)
FREE = Costs(
    proxy=ZERO, proxy_small_s=0, api_small_s=0, api_poll_s=0, front=ZERO, engine_tokens_per_s=100,
    engine_half=0, engine_max_seqs=64, adapter_load_s=0, receive_token_s=0, prepare=ZERO, learner_token_s=0, step_s=0,
    allreduce_latency_s=0, allreduce_bytes_per_s=1, gradient_bytes=0, checkpoint_bytes=0, pulled_bytes=0, save=ZERO,
    load=ZERO, store_write_s=0,
)  # fmt: skip
"""Everything is free except the engine's 100 tokens per second."""
LOAD = Workload(runs=1, groups=2, completions=4, tokens=50, tokens_cv=0, prompt_tokens=10, packed_length=110)
HERE = Fleet(artifact_bytes_per_s=0)  # one machine: files needn't move


def service(costs=FREE, fleet=HERE, load=LOAD):
    return Service(simpy.Environment(), costs, fleet, load)


def test_groups_are_packed_with_their_prompt_once_per_sequence():
    """Two completions of 50 and a prompt of 10 fill 110; a group of four takes two sequences, and two groups four."""
    assert service()._rows() == [110, 110, 110, 110]
    # With room for 170, a group's fourth completion would begin a sequence with its prompt, which the next group's
    # prompt and first completion then fill up to 120, and no more: 10 + 50 + 10 + 50 + 50 = 170 does fit.
    assert service(load=replace(LOAD, packed_length=170))._rows() == [160, 170, 110]


def test_ring_all_reduce():
    """Four learners: 6 hops of 0.5 s latency and a quarter of 8 bytes at 2 bytes per second."""
    costs = replace(FREE, allreduce_latency_s=0.5, gradient_bytes=8, allreduce_bytes_per_s=2)
    assert service(costs).allreduce_s(4) == pytest.approx(6 * (0.5 + 1))
    assert service(costs).allreduce_s(1) == 0


JOB = replace(
    FREE, learner_token_s=0.01, step_s=0.4, prepare=Linear(0.05, 0.001), store_write_s=0.1, save=Linear(1.0, 0.01),
    checkpoint_bytes=100, job_small_s=0.2,
)  # fmt: skip


def test_the_stages_of_a_job_by_hand():
    stages = simulate_runs(JOB, HERE, LOAD)["stages_s"]
    assert [stages["claim"], stages["publish"]] == pytest.approx([0.1, 0.1])
    assert stages["prepare"] == pytest.approx(8 * (0.05 + 0.05) + 0.2 + 0.1)  # 8 trajectories of 50 tokens
    assert stages["load"] == 0  # the learners hold the only model there is
    assert stages["steps"] == pytest.approx(4 * (1.1 + 0.4 + 0.1))  # four sequences of 110 tokens
    assert stages["checkpoint"] == pytest.approx(2.0)


def test_more_learners_speed_up_only_the_tokens():
    """Amdahl: with two learners two steps instead of four, and at best the part that isn't divided remains."""
    seconds = {}
    for learners in (1, 2, 4, 64):
        stages = simulate_runs(JOB, replace(HERE, learners=learners), LOAD)["stages_s"]
        seconds[learners] = sum(stages.values()) - stages["queued"]
    fixed, divided = 0.1 + 1.1 + 2.0 + 0.1, 4 * 1.6
    assert seconds[1] == pytest.approx(fixed + divided)
    assert seconds[2] == pytest.approx(fixed + divided / 2)
    assert seconds[4] == seconds[64] == pytest.approx(fixed + divided / 4)  # four sequences occupy no more than four
    assert seconds[1] / seconds[64] < (fixed + divided) / fixed


def test_jobs_of_one_base_model_share_its_learners():
    """A job uses the learners for 6.4 s of its 9.7 s; other models' jobs have them meanwhile. If one job runs at once,
    each takes 9.7 s, less the 0.8 s of preparation, which is done ahead."""
    load, fleet = replace(LOAD, runs=8), replace(HERE, engines=2)
    many, one = (simulate_runs(JOB, replace(fleet, jobs_at_once=n), load) for n in (8, 1))
    assert many["bottleneck"] == "learners" and many["utilisation"]["learners"] == pytest.approx(1, abs=0.01)
    assert many["jobs_per_s"] == pytest.approx(1 / 6.4, rel=0.02)
    assert one["jobs_per_s"] == pytest.approx(1 / 8.9, rel=0.02)
    two_bases = simulate_runs(JOB, replace(fleet, base_models=2), load)
    assert two_bases["jobs_per_s"] == pytest.approx(2 / 6.4, rel=0.06)


def test_one_preparation_at_a_time():
    """Preparing takes 20 s, which three jobs at once do one after the other."""
    costs = replace(JOB, prepare=Linear(20 / 8, 0))
    result = simulate_runs(costs, replace(HERE, engines=2), replace(LOAD, runs=3, max_policy_lag=1))
    assert result["jobs_per_s"] == pytest.approx(1 / 20, rel=0.05)


def test_as_many_tokens_are_trained_as_sampled():
    """Conservation: each job takes 8 rollouts of 50 tokens, whatever the lag."""
    for lag in (0, 1):
        result = simulate_runs(JOB, HERE, replace(LOAD, runs=4, max_policy_lag=lag), rounds=20)
        assert result["rollouts_per_s"] == pytest.approx(8 * result["jobs_per_s"], rel=0.02)
        assert result["tokens_per_s"] == pytest.approx(50 * result["rollouts_per_s"], rel=0.03)


def test_policy_lag_hides_rollouts_behind_training():
    """On-policy, 4 s of rollouts (400 tokens at 100/s) and 9.7 s of training follow each other; with a lag of one
    version the rollouts and the 0.8 s of preparation overlap with training."""
    strict, lagged = (
        simulate_runs(JOB, HERE, replace(LOAD, max_policy_lag=lag), rounds=10)["jobs_per_s"] for lag in (0, 1)
    )
    assert 1 / strict == pytest.approx(4 + 0.8 + 0.1 + 9.7, abs=0.08)  # check, add; polls take up to 0.07 s
    assert 1 / lagged == pytest.approx(8.9, abs=0.15)


SLOW_PROXY = replace(FREE, proxy=Linear(0.02, 0.001), front=Linear(0.01, 0), engine_tokens_per_s=1e6)


def test_throughput_of_completions_is_bounded_by_the_busiest_server():
    """200 tokens: 0.22 s in the proxy, 0.01 s in the engine's process. One request at a time takes both; many keep the
    proxy busy."""
    alone, many = (simulate_rollouts(SLOW_PROXY, HERE, LOAD, at_once) for at_once in (1, 32))
    assert alone["rollouts_per_s"] == pytest.approx(4 / 0.2302, rel=0.001)
    assert many["rollouts_per_s"] == pytest.approx(4 / 0.22, rel=0.01)
    assert many["bottleneck"] == "proxy" and many["utilisation"]["proxy"] == pytest.approx(1, abs=0.01)
    assert many["utilisation"]["engine processes"] == pytest.approx(0.01 / 0.22, abs=0.005)  # the utilisation law: X S


def test_littles_law():
    """N = X R: of a closed loop, the number of open requests is their rate times their time."""
    result = simulate_rollouts(SLOW_PROXY, HERE, LOAD, 16)
    assert result["rollouts_per_s"] / 4 * result["request_median_s"] == pytest.approx(16, rel=0.03)


def test_proxies_divide_their_work():
    fleet = replace(HERE, proxies=4, engines=4)
    result = simulate_rollouts(SLOW_PROXY, fleet, LOAD, 64, rounds=20)
    assert result["rollouts_per_s"] == pytest.approx(4 * 4 / 0.22, rel=0.03)


def test_engines_that_pull_a_version_at_once_share_the_artifact_store():
    """Four engines pull 100 bytes each. Shared 100 bytes/s: all wait 4 s; each its own: 1 s. Then 0.5 s to load."""
    costs = replace(FREE, pulled_bytes=100, adapter_load_s=0.5)
    fleet = Fleet(engines=4, node_bytes_per_s=100, artifact_bytes_per_s=100)
    assert simulate_publication(costs, fleet, 8, LOAD) == pytest.approx([4.5] * 4)
    alone = replace(fleet, artifact_bytes_per_s=None)
    assert simulate_publication(costs, alone, 8, LOAD) == pytest.approx([1.5] * 4)


def test_each_engine_pulls_a_version_once():
    costs = replace(FREE, pulled_bytes=100)
    for at_once in (1, 50):
        assert simulate_publication(costs, Fleet(node_bytes_per_s=100), at_once, LOAD) == pytest.approx([1.0])


def test_sqlite_has_one_writer_at_a_time():
    """5 ms per transaction, of which a job has five (add, claim, start, one gradient step, complete)."""
    costs = replace(FREE, store_write_s=0.005, engine_tokens_per_s=1e6)
    load, fleet = replace(LOAD, runs=64), Fleet(engines=64, base_models=64, learners=4, artifact_bytes_per_s=0)
    sqlite, postgresql = (simulate_runs(costs, replace(fleet, store=s), load) for s in ("sqlite", "postgresql"))
    assert sqlite["bottleneck"] == "store"
    assert sqlite["jobs_per_s"] == pytest.approx(200 / 5, rel=0.05)
    assert postgresql["jobs_per_s"] > 2 * sqlite["jobs_per_s"]


def test_engines_that_cannot_be_divided_evenly_are_rejected():
    with pytest.raises(ValueError, match="3 engines can't be split evenly over 2"):
        service(fleet=Fleet(engines=3, base_models=2))


def test_quantiles_are_values_that_occurred():
    assert quantiles([1, 2, 3, 4], 0.5, 0.99, 0.25) == [2, 4, 1]
