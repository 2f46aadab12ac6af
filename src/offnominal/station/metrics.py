"""Counters and gauges of a station, as Prometheus reads them."""

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from offnominal.station.inspection.inspector import Inspector
from offnominal.station.state import State
from offnominal.station.store.database import Database
from offnominal.station.store.tables import Delivery

__all__ = ["Metrics"]

_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)  # seconds


class Metrics:
    """What is counted as it happens, and what is looked up when somebody asks.

    Parameters
    ----------
    database : Database
    state : State
    inspector : Inspector
    """

    def __init__(self, database: Database, state: State, inspector: Inspector) -> None:
        self._registry = CollectorRegistry()
        self._inspections = Counter(
            "offnominal_inspections",
            "Results that were stored, since the station started.",
            ["product", "verdict"],
            registry=self._registry,
        )
        self._seconds = Histogram(
            "offnominal_inspection_seconds",
            "From a picture's arrival to its result being stored.",
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self.dropped = Counter(
            "offnominal_deliveries_dropped",
            "Results that an output owed and that were given up, because it owed too many.",
            ["output"],
            registry=self._registry,
        )
        self._registry.register(_Now(database, state, inspector))

    def seen(self, message: dict[str, Any]) -> None:
        """Count a result, by its message."""
        self._inspections.labels(message["product"], message["verdict"]).inc()
        self._seconds.observe(message["milliseconds"] / 1000)

    def text(self) -> bytes:
        """In Prometheus's text format; reads the database, so not in the event loop."""
        return generate_latest(self._registry)


class _Now(Collector):
    def __init__(self, database: Database, state: State, inspector: Inspector) -> None:
        self._database, self._state, self._inspector = database, state, inspector

    def describe(self) -> list[Metric]:
        """Nothing: the database may not be open yet."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Look it up."""
        ready = GaugeMetricFamily("offnominal_ready", "1 while the station can inspect.")
        ready.add_metric([], float(not self._state.blind))
        yield ready
        facts = GaugeMetricFamily(
            "offnominal_ok", "1 of what is as it should be: sources, outputs, workers.",
            labels=["name"],
        )  # fmt: skip
        for fact in self._state.facts:
            facts.add_metric([fact.name], float(fact.ok))
        yield facts
        queue = GaugeMetricFamily("offnominal_queue", "Pictures that were accepted and wait.")
        queue.add_metric([], self._inspector.waiting)
        yield queue
        up = GaugeMetricFamily(
            "offnominal_worker_up", "1 of a worker that is there.", labels=["worker"]
        )
        died = CounterMetricFamily(
            "offnominal_worker_deaths", "Workers that ended.", labels=["worker"]
        )
        for name, there, deaths in self._inspector.workers:
            up.add_metric([name], float(there))
            died.add_metric([name], deaths)
        yield up
        yield died
        owed = GaugeMetricFamily(
            "offnominal_deliveries_owed", "Results that an output has not delivered yet.",
            labels=["output"],
        )  # fmt: skip
        query = sa.select(Delivery.output, sa.func.count()).group_by(Delivery.output)
        with self._database.reading() as session:
            for name, count in session.execute(query):
                owed.add_metric([name], count)
        yield owed
