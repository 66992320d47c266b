"""Metrics of several nodes as one page in Prometheus' format."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tandem.cluster.metrics.catalogue import METRICS
from tandem.serve.observing.exposition import merged

RAYS = 'Component="core_worker",NodeAddress="{node}",SessionName="s",Version="2.60.0",WorkerId="{worker}"'
OTEL = 'otel_scope_name="ray",otel_scope_schema_url="",otel_scope_version=""'


def page(node, *workers):
    """A page as Ray's agent writes it: `workers` are dicts from name and labels to the value."""
    lines = ["# HELP ray_tasks Tasks.", "# TYPE ray_tasks gauge", f'ray_tasks{{NodeAddress="{node}"}} 3.0']
    for name in sorted({name for worker in workers for name, _ in worker}):
        metric = METRICS[name]
        lines += [f"# HELP ray_{name} Of Ray.", f"# TYPE ray_{name} {metric.kind}"]
        for number, worker in enumerate(workers):
            for (found, labels), value in worker.items():
                if found == name:
                    rays = RAYS.format(node=node, worker=number)
                    lines.append(f"ray_{name}{{{rays},{labels},{OTEL}}} {value}")
    return "\n".join([*lines, ""])


def samples(text):
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


TRAINED, RUNNING = "tandem_tokens_trained_total", "tandem_engine_requests_running"
BASE, REPLICA = 'base_model="b"', 'base_model="b",replica="r"'


def test_processes_of_a_node_add_up_and_nodes_stay_apart():
    pages = {
        "10.0.0.1": page("10.0.0.1", {(TRAINED, BASE): 5.0}, {(TRAINED, BASE): 7.0}),
        "10.0.0.2": page("10.0.0.2", {(TRAINED, BASE): 1.0}),
    }
    found = samples(merged(pages))
    assert found[TRAINED, ("base_model", "b"), ("node", "10.0.0.1")] == 12
    assert found[TRAINED, ("base_model", "b"), ("node", "10.0.0.2")] == 1
    assert found["tandem_node_metrics_up", ("node", "10.0.0.1")] == 1


def test_gauges_dont_add_up():
    """While a coordinator is replaced, two report the same queue."""
    text = merged({"n": page("n", {(RUNNING, REPLICA): 3.0}, {(RUNNING, REPLICA): 4.0})})
    assert samples(text)[RUNNING, ("base_model", "b"), ("node", "n"), ("replica", "r")] == 4


def test_histograms_add_up():
    name = "tandem_publish_seconds"
    labels = 'NodeAddress="n",base_model="b",WorkerId="{}"'
    lines = [f"# HELP ray_{name} x", f"# TYPE ray_{name} histogram"]
    for worker, (low, high) in enumerate([(1, 2), (4, 6)]):
        own = labels.format(worker)
        lines += [f'ray_{name}_bucket{{{own},le="0.1"}} {low}', f'ray_{name}_bucket{{{own},le="+Inf"}} {high}']
        lines += [f"ray_{name}_count{{{own}}} {high}", f"ray_{name}_sum{{{own}}} {high / 2}"]
    text = merged({"n": "\n".join([*lines, ""])})
    found, own = samples(text), (("base_model", "b"),)
    assert found[f"{name}_bucket", *own, ("le", "0.1"), ("node", "n")] == 5
    assert found[f"{name}_bucket", *own, ("le", "+Inf"), ("node", "n")] == 8
    assert found[f"{name}_count", *own, ("node", "n")] == 8
    assert found[f"{name}_sum", *own, ("node", "n")] == 4
    assert text.count(f"# TYPE {name} histogram") == 1


def test_rays_own_metrics_and_labels_stay_out():
    text = merged({"n": page("n", {(TRAINED, BASE): 5.0})})
    assert "ray_" not in text and "WorkerId" not in text and "SessionName" not in text and "otel" not in text


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a{b}", "a\nb", "ä 😀"])
def test_any_name_of_a_base_model_survives(name):
    escaped = name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    text = merged({"n": page("n", {(TRAINED, f'base_model="{escaped}"'): 5.0})})
    assert samples(text)[TRAINED, ("base_model", name), ("node", "n")] == 5


def test_a_node_that_doesnt_answer_is_named():
    found = samples(merged({"a": page("a", {(TRAINED, BASE): 1.0}), "b": None}))
    assert found["tandem_node_metrics_up", ("node", "b")] == 0
