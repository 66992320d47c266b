"""The short form of the soak: a real service loses some processes, then all, and keeps every promise."""

import pytest
from campaign import run_campaign
from fault_kinds import FAULTS

pytestmark = pytest.mark.slow

KINDS = ("kill-learner", "kill-coordinator", "kill-all")


def test_every_job_ends_once_whichever_process_is_killed(tiny_model, tmp_path):
    campaign = run_campaign(tmp_path / "service", [FAULTS[kind] for kind in KINDS], seed=1, tell=print)
    assert campaign.findings == ()
    assert [round.fault for round in campaign.rounds] == list(KINDS)
    assert all(round.open_jobs > 0 for round in campaign.rounds)  # each came while jobs ran
    assert campaign.num_versions == campaign.num_jobs > 0
