# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Sets the metrics of ranks in the registry that vLLM's `/metrics` shows."""

import functools
from typing import Any

from prometheus_client import Counter, Gauge

from vllm_dwdp.engine.metrics.series import PREFIX, SERIES, Series, Values

LABELS = ("model_name", "engine")
"""vLLM's own metrics have the same."""


@functools.cache
def metric(series: Series) -> Any:
    """The series' metric; there is one for a process, whatever its number of engines."""
    labels = (*LABELS, series.label) if series.label else LABELS
    if series.is_counter:
        return Counter(PREFIX + series.name, series.help, labels)
    # With several API servers only one of them sets these; the others have no value to show.
    return Gauge(PREFIX + series.name, series.help, labels, multiprocess_mode="mostrecent")


class EngineExporter:
    """Sets the metrics of one engine. engine: its number, by which vLLM labels its metrics."""

    def __init__(self, model_name: str, engine: int) -> None:
        self._labels = (model_name, str(engine))
        self._last: dict[tuple[str, str], float] = {}

    def set(self, report: dict[str, Values]) -> None:
        """Take over what the engine has reported."""
        for series in SERIES:
            for label, value in report.get(series.name, {}).items():
                self._set(series, label, value)

    def _set(self, series: Series, label: str, value: float) -> None:
        own = (label,) if series.label else ()
        child = metric(series).labels(*self._labels, *own)
        if series.is_counter:
            child.inc(self._growth(series, label, value))
        else:
            child.set(value)

    def _growth(self, series: Series, label: str, value: float) -> float:
        """How much a counter has grown; a rank that has restarted counts from zero again."""
        last = self._last.get((series.name, label), 0.0)
        self._last[series.name, label] = value
        return value - last if value >= last else value
