"""The metrics of this service, merged from what Ray's agents of all nodes say, in Prometheus' text format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from tandem.cluster.metrics.catalogue import METRICS

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
RAYS_PREFIX = "ray_"
"""Ray's agents put this before the name of every metric."""
NODE_UP = "tandem_node_metrics_up"
_NODE_LABEL = "NodeAddress"  # Ray's
_Labels = tuple[tuple[str, str], ...]


def merged(pages: Mapping[str, str | None]) -> str:
    """Return one page of the service's own metrics from those of the nodes, by the node's address.

    Of Ray's labels, only the node stays. Processes of a node are added up, except for gauges, where the largest value
    counts. NODE_UP is 0 for a node whose page is None.
    """
    families: dict[str, _Family] = {}
    for page in pages.values():
        for metric in text_string_to_metric_families("\n".join(_own_lines(page or "")) + "\n"):
            name = metric.name.removeprefix(RAYS_PREFIX)
            known = METRICS.get(name) or METRICS.get(f"{name}_total")
            if known is not None:
                family = families.setdefault(name, _Family(name, known.description, metric.type))
                for sample in metric.samples:
                    family.add(sample.name.removeprefix(RAYS_PREFIX), sample.labels, sample.value, known.labels)
    registry = CollectorRegistry()
    registry.register(_Collected([*(families[name].metric() for name in sorted(families)), _nodes(pages)]))
    return generate_latest(registry).decode()


def _own_lines(page: str) -> Iterator[str]:
    """Yield the lines of this service's metrics: a page has ten times as many of Ray itself."""
    for line in page.split("\n"):
        name = line.split(" ", 3)[2] if line.startswith("# ") and line.count(" ") >= 2 else line
        if name.startswith(f"{RAYS_PREFIX}tandem_"):
            yield line


@dataclass
class _Family:
    name: str
    description: str
    type: str
    samples: dict[tuple[str, _Labels], float] = field(default_factory=dict)

    def add(self, name: str, labels: Mapping[str, str], value: float, own: Iterable[str]) -> None:
        kept = {label: labels[label] for label in (*own, "le") if label in labels}
        kept["node"] = labels.get(_NODE_LABEL, "")
        key = name, tuple(kept.items())
        before = self.samples.get(key)
        if before is None:
            self.samples[key] = value
        else:
            self.samples[key] = max(before, value) if self.type == "gauge" else before + value

    def metric(self) -> Metric:
        metric = Metric(self.name, self.description, self.type)
        for (name, labels), value in self.samples.items():
            metric.add_sample(name, dict(labels), value)
        return metric


def _nodes(pages: Mapping[str, str | None]) -> Metric:
    up = GaugeMetricFamily(NODE_UP, "1 if the node's metrics agent answered this scrape, else 0.", labels=["node"])
    for node, page in pages.items():
        up.add_metric([node], float(page is not None))
    return up


class _Collected(Collector):
    """Metrics that are complete."""

    def __init__(self, metrics: Iterable[Metric]):
        self._metrics = list(metrics)

    def collect(self) -> Iterable[Metric]:
        return self._metrics
