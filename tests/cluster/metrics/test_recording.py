"""Recording of metrics, and the catalogue that it follows."""

import logging
import re

import pytest
from recorded_metrics import recorded

from tandem.cluster.metrics import recording
from tandem.cluster.metrics.catalogue import METRICS
from tandem.cluster.metrics.peak_flops import PEAK_FLOPS, peak_flops

TENANT = {"model", "model_id", "entity", "project", "key", "job", "job_id", "request", "request_id", "user"}


def test_values_arrive_with_their_labels():
    with recorded() as metrics:
        recording.count("tandem_tokens_trained_total", 512, base_model="tiny")
        recording.count("tandem_tokens_trained_total", 0, base_model="tiny")
        recording.observe("tandem_publish_seconds", 0.25, base_model="tiny")
    assert metrics.of("tandem_tokens_trained_total", base_model="tiny") == [512.0]  # Ray's counters refuse a zero
    assert metrics.of("tandem_publish_seconds") == [0.25]


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("tandem_nothing_total", {"base_model": "tiny"}),
        ("tandem_lease_losses_total", {"base_model": "x", "model": "y"}),
    ],
)
def test_a_wrong_metric_is_logged_and_harms_nothing(monkeypatch, caplog, name, labels):
    monkeypatch.setattr(recording, "_faulty", set())
    with recorded() as metrics, caplog.at_level(logging.ERROR):
        recording.count(name, 1, **labels)
        recording.count(name, 1, **labels)
    assert metrics.values == {}
    assert [record.args for record in caplog.records] == [(name,)]


def test_without_ray_nothing_is_recorded():
    recording.count("tandem_lease_losses_total", base_model="tiny")  # the recorder of production


def test_the_catalogue_follows_prometheus_conventions():
    assert len(METRICS) >= 30
    for name, metric in METRICS.items():
        assert re.fullmatch(r"tandem_[a-z_]+", name)
        assert (metric.kind == "counter") == name.endswith("_total")
        assert bool(metric.buckets) == (metric.kind == "histogram")
        assert list(metric.buckets) == sorted(set(metric.buckets))
        assert metric.description.endswith(".")


def test_no_label_names_a_tenant_or_has_a_value_per_request():
    assert {label for metric in METRICS.values() for label in metric.labels} & TENANT == set()


def test_peaks_are_found_by_the_names_that_cuda_gives():
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12
    assert peak_flops("NVIDIA A10G") == 70e12
    assert peak_flops("NVIDIA A10") == 125e12
    assert peak_flops("NVIDIA L40S") == 362e12
    assert peak_flops("NVIDIA L4") == 121e12
    assert peak_flops("NVIDIA GH200 480GB") == 989e12
    assert peak_flops("Tesla K80") is None
    assert all(peak_flops(f"NVIDIA {name}") == peak for name, peak in PEAK_FLOPS.items())
