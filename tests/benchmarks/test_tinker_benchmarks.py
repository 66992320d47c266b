"""The figures of the benchmarks of the Tinker API."""

import pytest
from tinker_round_trip import PARTS, figures
from tinker_sampling import compared


def test_overhead_is_the_median_of_pairs():
    parts = [dict.fromkeys(PARTS, seconds) for seconds in (0.001, 0.002, 0.009)]
    result = figures([110.0, 230.0, 305.0], [100.0, 200.0, 300.0], parts)
    assert (result["sdk_ms"], result["direct_ms"], result["more_ms"]) == (230.0, 200.0, 10.0)
    assert result["more_ms_quartiles"] == [7.5, 20.0]
    assert result["ratio"] == pytest.approx(1.1)
    assert result["parts_ms"] == dict.fromkeys(PARTS, 2.0)


def test_a_server_is_compared_by_its_median_round_and_all_of_its_failures():
    def figures(per_s, failed=0):
        return {part: {"per_s": per_s, "failed": failed} for part in ("burst", "clients")}

    turns = {"tandem": [figures(9.0), figures(2.0, 3), figures(30.0)], "vllm": [figures(10.0)] * 3}
    result = compared(turns)
    assert result["tandem"]["of_vllm"] == {"burst": 0.9, "clients": 0.9}
    assert result["tandem"]["failed_in_all_rounds"] == 6 and result["tandem"]["burst"]["failed"] == 0
