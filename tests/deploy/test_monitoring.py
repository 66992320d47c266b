"""The table of metrics, the dashboard and the scrape configurations speak of metrics that exist."""

import json
import re

import yaml
from manifests import FILES, documents, pod_templates
from paths import ROOT

from tandem.cluster.metrics.catalogue import METRICS
from tandem.serve.observing.exposition import NODE_UP
from tandem.serve.observing.routes import router

MONITORING = ROOT / "deploy/monitoring"
DASHBOARD = json.loads((MONITORING / "grafana-dashboard.json").read_text())
PODS = [
    (file, pod)
    for file in FILES
    for one in documents(file.read_text())
    if one["apiVersion"] == "ray.io/v1"
    for pod in pod_templates(one)
]
DOCS = (ROOT / "docs/observability.md").read_text()
ROW = re.compile(r"^\| `(tandem_\w+)` \| (\w+) \| ([\w, ]*) \| (.+) \|$", re.MULTILINE)


def test_the_table_of_metrics_is_the_catalogue():
    written = [row for row in ROW.findall(DOCS) if row[0] != NODE_UP]
    assert written == [
        (metric.name, metric.kind, ", ".join(metric.labels), metric.description) for metric in METRICS.values()
    ]


def names_in(text):
    """The metrics that an expression or a configuration names, without the suffixes of histograms."""
    found = re.findall(r"\btandem_[a-z_]+", text)
    return {name if name in METRICS or name == NODE_UP else re.sub(r"_(bucket|count|sum)$", "", name) for name in found}


def panels():
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def test_every_expression_of_the_dashboard_names_metrics_that_exist():
    for panel in panels():
        for target in panel["targets"]:
            names = names_in(target["expr"])
            assert names and names <= {*METRICS, NODE_UP}, (panel["title"], names)


def test_every_metric_is_in_the_dashboard():
    shown = {name for panel in panels() for target in panel["targets"] for name in names_in(target["expr"])}
    assert shown == {*METRICS, NODE_UP}


def test_expressions_use_labels_that_the_metrics_have():
    for panel in panels():
        for target in panel["targets"]:
            known = {"le", "node"}.union(*(METRICS[n].labels for n in names_in(target["expr"]) if n in METRICS))
            by = [
                label.strip() for group in re.findall(r"by \(([^)]*)\)", target["expr"]) for label in group.split(",")
            ]
            matched = re.findall(r'(\w+)=~?"', target["expr"])
            shown = re.findall(r"{{(\w+)}}", target["legendFormat"])
            assert {*by, *matched, *shown} <= known, (panel["title"], target)


def test_histograms_and_counters_are_read_as_such():
    for panel in panels():
        for expr in (target["expr"] for target in panel["targets"]):
            for name in names_in(expr) & set(METRICS):
                if METRICS[name].kind == "histogram":
                    assert f"rate({name}_bucket" in expr
                elif METRICS[name].kind == "counter":
                    assert f"rate({name}" in expr or f"increase({name}" in expr
                else:
                    assert f"rate({name}" not in expr


def test_panels_have_units_descriptions_and_places_of_their_own():
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    taken = set()
    for panel in panels():
        assert panel["title"] and panel["description"].endswith(".")
        assert panel["fieldConfig"]["defaults"]["unit"]
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells


def test_the_scrape_configuration_asks_for_the_route_that_exists():
    [job] = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())["scrape_configs"]
    assert job["metrics_path"] in {route.path for route in router.routes}
    assert job["authorization"]["type"] == "Bearer"


def test_the_monitors_find_the_ports_and_labels_of_the_pods():
    ports = {port["name"] for _, pod in PODS for port in pod["spec"]["containers"][0].get("ports", ())}
    monitors = list(yaml.safe_load_all((MONITORING / "servicemonitor.yaml").read_text()))
    assert [monitor["kind"] for monitor in monitors] == ["ServiceMonitor", "PodMonitor"]
    for monitor in monitors:
        [endpoint] = monitor["spec"].get("endpoints") or monitor["spec"]["podMetricsEndpoints"]
        assert endpoint["port"] in ports
        assert rename(endpoint["metricRelabelings"], "ray_tandem_jobs") == "tandem_jobs"
        assert rename(endpoint["metricRelabelings"], "ray_tasks") is None


def rename(rules, name):
    """The name that relabelling gives a metric, None if it drops it. As Prometheus does, for these actions."""
    for rule in rules:
        if rule.get("sourceLabels") == ["__name__"]:
            match = re.fullmatch(rule["regex"], name)
            if rule.get("action") == "keep":
                if not match:
                    return None
            elif match:
                name = match[1]
    return name
