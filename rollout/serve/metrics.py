"""The endpoint's figures in Prometheus' form, beside those of the backend. The only file that imports
prometheus_client.

A figure of the backend, `kv/written_bytes`, is the gauge `dualpath_kv_written_bytes`; one of an engine has
the engine as a label.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from rollout.serve.served_model import Reply

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)


class EndpointMetrics:
    """Of one endpoint."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "dualpath_http_requests", "Requests answered", ["route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "dualpath_http_seconds", "Of a request", ["route"], buckets=_SECONDS, registry=registry
        )
        self._ttft = Histogram(
            "dualpath_turn_ttft_seconds", "To a turn's first token", buckets=_SECONDS, registry=registry
        )
        self._tokens = Counter("dualpath_turn_tokens", "Of turns served", ["kind"], registry=registry)
        self._running = Gauge("dualpath_http_requests_running", "Requests under way", registry=registry)
        self._sessions = Gauge("dualpath_sessions_open", "Sessions that have not ended", registry=registry)
        self._outcomes = Counter("dualpath_sessions_ended", "Sessions", ["outcome"], registry=registry)
        self._backend = _BackendFigures()
        registry.register(self._backend)

    def served(self, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def turn(self, reply: Reply) -> None:
        """A turn was served."""
        result = reply.result
        self._ttft.observe(result.ttft_s)
        self._tokens.labels("hit").inc(result.hit_tokens)
        self._tokens.labels("miss").inc(result.prompt_tokens - result.hit_tokens)
        self._tokens.labels("output").inc(len(result.token_ids))

    def session_ended(self, outcome: str) -> None:
        self._outcomes.labels(outcome).inc()

    def render(self, backend: Mapping[str, float], *, num_running: int, num_sessions: int) -> bytes:
        """Everything, as a scrape wants it; `backend` are the backend's own figures."""
        self._backend.figures = backend
        self._running.set(num_running)
        self._sessions.set(num_sessions)
        text: bytes = generate_latest(self._registry)
        return text


class _BackendFigures:
    """A collector of flat slash-named figures."""

    def __init__(self) -> None:
        self.figures: Mapping[str, float] = {}

    def collect(self) -> Iterable[GaugeMetricFamily]:
        families: dict[str, GaugeMetricFamily] = {}
        for path, engine, name, value in self._named():
            labels = ["engine"] if engine else []
            if name not in families:
                families[name] = GaugeMetricFamily(name, path, labels=labels)
            families[name].add_metric([engine] if engine else [], value)
        return families.values()

    def _named(self) -> Iterator[tuple[str, str, str, float]]:
        for path, value in self.figures.items():
            parts, engine = path.split("/"), ""
            if parts[0] == "engines" and len(parts) > 2:
                engine = parts.pop(1)
            path = "/".join(parts)
            yield path, engine, "dualpath_" + re.sub("[^a-zA-Z0-9_]", "_", path), value
