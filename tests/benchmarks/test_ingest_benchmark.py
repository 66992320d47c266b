"""The measurement of a large body, on an API in a process of its own."""

from argparse import Namespace

import ingest
import pytest
from paths import ROOT

pytestmark = pytest.mark.slow


def test_a_body_is_received_and_checked(monkeypatch):
    monkeypatch.setattr(ingest, "IDLE_S", 1.5)
    found = ingest.measure(ROOT, Namespace(megabytes=0.5, tokens=100, group_size=2))
    assert found["body_mb"] >= 0.5 and found["post_s"] > 0 and found["idle_longest_s"] > 0
    assert found["api_rss_peak_mb"] >= found["api_rss_before_mb"] > 0
    assert found["checker_rss_peak_mb"] > 0  # the process that checks was found
