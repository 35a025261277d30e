"""A watch as Prometheus sees it: counts, evidence and alarms of each codec, tenant and place.

>>> registry = CollectorRegistry()
>>> registry.register(WatchMetrics(Watch()))
"""

from collections.abc import Iterator
from typing import Any

from ilcp.assurance.watch import Watch
from ilcp.errors import MissingExtraError

try:
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
except ImportError as error:
    raise MissingExtraError.of("prometheus_client", "to show a watch to Prometheus", "http") from error

__all__ = ["WatchMetrics", "exposition"]

LABELS = ["codec_id", "tenant", "place", "reference"]


class WatchMetrics:
    """A collector for anybody's registry; it reads the watch each time that it is asked."""

    def __init__(self, watch: Watch):
        self.watch = watch

    def collect(self) -> Iterator[Any]:
        """Yields the metrics.

        Raises:
            StorageError: the watch cannot be read.
        """
        messages = CounterMetricFamily("ilcp_assurance_messages", "messages or canaries judged", None, LABELS)
        decided = CounterMetricFamily(
            "ilcp_assurance_decisions", "what was decided about them", None, [*LABELS, "decision"]
        )
        evidence = GaugeMetricFamily("ilcp_assurance_evidence", "won by betting that they changed", None, LABELS)
        alarm = GaugeMetricFamily("ilcp_assurance_alarm", "1 while an alarm stands", None, LABELS)
        for state in self.watch.states():
            labels = [state.codec_id, state.tenant, state.place, state.reference]
            messages.add_metric(labels, state.messages)
            evidence.add_metric(labels, state.value)
            alarm.add_metric(labels, float(state.alarmed))
            for name, count in state.decided.items():
                decided.add_metric([*labels, name], count)
        yield from (messages, decided, evidence, alarm)


def exposition(watch: Watch) -> str:
    """Returns a watch in Prometheus' text format, as its node exporter reads it from a file.

    Raises:
        StorageError: the watch cannot be read.
    """
    registry = CollectorRegistry()
    registry.register(WatchMetrics(watch))
    return generate_latest(registry).decode()
