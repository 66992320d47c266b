"""A training loop of the `tinker` SDK goes through the loss of its learner, and of all processes at once."""

import sys

from helpers import processes, wait_for_health
from paths import ROOT

sys.path.append(str(ROOT / "tests" / "faults"))
from fault_kinds import API, COORDINATOR, ENGINE, ENGINE_CORE, LEARNER, PROXY
from service_process import title_of
from tinker_calls import Loop, check_counts, differences, draw, versions

RECOVERED_S = 600  # a bound; on an idle machine half a minute


def kill(*titles):
    """Kill every process whose title starts with one of these."""
    found = processes(lambda process: title_of(process).startswith(titles))
    for process in found:
        process.kill()
    return found


def test_a_loop_whose_processes_are_killed_makes_the_versions_of_an_undisturbed_one(service, http):
    plan = draw(seed=5, num_rounds=3)
    undisturbed = Loop(service.url, f"tml-{service.key}", plan).run()
    disturbed = Loop(service.url, f"tml-{service.key}", plan)
    for number, (planned, victims) in enumerate(
        zip(plan.rounds, ((LEARNER,), (), (API, COORDINATOR, ENGINE, ENGINE_CORE, LEARNER, PROXY)), strict=True)
    ):
        killed = []
        disturbed.take(number, planned, between=lambda titles=victims, killed=killed: killed.extend(kill(*titles)))
        assert bool(killed) == bool(victims)
    assert differences(plan, undisturbed, disturbed.outcome) == []
    made = versions(http, disturbed.outcome.run_id)
    assert made == versions(http, undisturbed.run_id) and len(made) == 2
    assert check_counts(plan, disturbed.outcome, made) == []
    wait_for_health(service.url, lambda health: health["status"] == "ok", RECOVERED_S)  # for the tests that follow
