"""What prometheus_client's files hold: the metrics of all workers of one machine, added up."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from taskpilot_instrument.semconv import METRIC_LABELS

_OURS: Final = frozenset(name.removesuffix("_total") for name in METRIC_LABELS)
_ATTEMPTS: Final = 5


def merged(*kinds: str) -> list[Metric]:
    """Return the families of these kinds, or of all, with what every process has counted, also those that ended."""
    folder = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
    for attempt in range(_ATTEMPTS):
        files = [str(path) for path in folder.glob("*.db") if not kinds or path.name.startswith(kinds)]
        try:
            return list(MultiProcessCollector.merge(files))  # type: ignore[no-untyped-call]
        except (OSError, struct.error, RuntimeError):  # a worker begins a file, or its gauges go as it ends
            if attempt == _ATTEMPTS - 1:
                raise
    return []


class _Rest(Collector):
    """Everything in the files that is not ours: the application's own metrics, and those written under new names."""

    def collect(self) -> Iterator[Metric]:
        """Yield the families."""
        return (metric for metric in merged() if metric.name not in _OURS)


def shared_registry() -> CollectorRegistry:
    """Return a registry with what the application counts in all workers."""
    registry = CollectorRegistry()
    registry.register(_Rest())
    return registry
