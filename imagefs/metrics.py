"""This module shows the counters in Prometheus' text form: in .imagefs/stats and, if asked for, to a scraper over HTTP."""

import dataclasses
import resource
from collections.abc import Callable, Iterator, Mapping
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from imagefs.counters import Counters
from imagefs.errors import InvalidInput

Gauges = Callable[[], Mapping[str, float]]


class Metrics(Collector):
    """Collects the process's counters, and gauges that the daemon computes when asked."""

    def __init__(self, counters: Counters, gauges: Gauges) -> None:
        """`gauges` must not wait."""
        self._counters = counters
        self._gauges = gauges
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """As prometheus_client asks for."""
        for field in dataclasses.fields(self._counters):
            family = CounterMetricFamily(f"imagefs_{field.name}", field.name.replace("_", " "))
            family.add_metric([], getattr(self._counters, field.name))
            yield family
        gauges = dict(self._gauges()) | {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0}
        for name, value in gauges.items():
            yield GaugeMetricFamily(f"imagefs_{name}", name.replace("_", " "), value=value)

    def text(self) -> bytes:
        """Return all metrics as text."""
        return generate_latest(self._registry)

    def listen(self, address: str) -> WSGIServer:
        """Serve the metrics over HTTP at "host:port" in a thread; `shutdown()` of what this returns ends it. Raises InvalidInput."""
        host, _, port = address.rpartition(":")
        try:
            server, _ = start_http_server(int(port), host.strip("[]") or "127.0.0.1", self._registry)
        except (OSError, ValueError, OverflowError) as error:
            raise InvalidInput(f"[metrics] listen = '{address}': cannot listen there: {error}") from error
        return server
