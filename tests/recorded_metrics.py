"""A recorder of metrics that keeps them in memory, for tests without Ray."""

from collections import defaultdict

from tandem.cluster.metrics.recording import recording_into


class Recorded:
    """Sums of counters, last values of gauges, and all values of histograms, by name and sorted labels."""

    def __init__(self):
        self.values = defaultdict(list)

    def record(self, metric, value, labels):
        self.values[metric.name, tuple(sorted(labels.items()))].append(value)

    def of(self, name, **labels):
        """Return the recorded values of a metric whose labels include these."""
        wanted = set(labels.items())
        found = [values for (own_name, own), values in self.values.items() if own_name == name and wanted <= set(own)]
        return [value for values in found for value in values]

    def total(self, name, **labels):
        return sum(self.of(name, **labels))


def recorded():
    """Record into memory in a block: with recorded() as metrics, ..."""
    return _Recording()


class _Recording:
    def __enter__(self):
        found = Recorded()
        self._block = recording_into(found)
        self._block.__enter__()
        return found

    def __exit__(self, *error):
        self._block.__exit__(*error)
