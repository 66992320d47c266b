"""The benchmark of many models on a running service, at toy size."""

import os
import sys

import pytest
from paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from many_models import Load, percentile, show
from queueing.service_load import Client, Meter


def test_models_train_in_turn_and_at_once(http):
    load = Load(models=2, rounds=1, alone=1, big_groups=3)
    found = load.measure(Client(http), lambda: Meter(lambda title: [os.getpid()]))
    throughput, fairness = found["throughput"], found["beside_a_big_job"]
    assert throughput["speedup"] == pytest.approx(
        throughput["at_once"]["jobs_per_minute"] / throughput["in_turn"]["jobs_per_minute"]
    )
    for way in ("in_turn", "at_once"):
        assert list(throughput[way]["stages_s"]) == ["queued", "prepare", "first_step", "publish"]
        assert all(seconds >= 0 for seconds in throughput[way]["stages_s"].values())
    assert fairness["alone"]["count"] == 1 and fairness["beside"]["count"] >= 1
    show(found)


def test_percentiles_by_hand():
    assert [percentile([4, 1, 3, 2], share) for share in (0, 0.5, 0.95)] == [1, 2, 4]
