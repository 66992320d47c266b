"""Training loops of the `tinker` SDK get the same answers and versions, whichever process is killed meanwhile."""

import pytest
from fault_kinds import FAULTS
from tinker_campaign import KINDS, run_campaign

pytestmark = pytest.mark.slow


def test_no_call_is_lost_or_doubled_whichever_process_is_killed(tmp_path):
    campaign = run_campaign(tmp_path / "service", 50, [FAULTS[kind] for kind in KINDS], seed=1, tell=print)
    assert campaign.findings == ()
    assert campaign.injected == KINDS and campaign.num_versions > 0
