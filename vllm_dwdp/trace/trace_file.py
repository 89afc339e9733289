# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The file of a trace: JSON in the Trace Event Format, with some facts of each rank beside it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm_dwdp.trace.errors import BadTrace
from vllm_dwdp.trace.events import Event, events_of, spans_in
from vllm_dwdp.trace.rank_spans import Recording, spans_of
from vllm_dwdp.trace.span import Span
from vllm_dwdp.trace.totals import LayerTotals, RankTotals, layer_totals, rank_totals

FORMAT = "vllm-dwdp trace"
VERSION = 1


@dataclass(frozen=True)
class Trace:
    """spans: in the order of time. about_ranks: see `about`. events: as the file has them."""

    spans: list[Span]
    about_ranks: list[dict[str, Any]]
    events: list[Event]

    @classmethod
    def of(cls, recordings: list[Recording]) -> "Trace":
        """The trace of what ranks have recorded."""
        recordings = sorted(recordings, key=lambda one: int(one["rank"]))
        spans = spans_of(recordings)
        names = {one["rank"]: f"rank {one['rank']} on {one['host']}" for one in recordings}
        return cls(spans, [about(one) for one in recordings], events_of(spans, names))

    @property
    def ranks(self) -> list[RankTotals]:
        return rank_totals(self.spans, self.about_ranks)

    @property
    def layers(self) -> list[LayerTotals]:
        return layer_totals(self.spans)

    def write(self, path: Path) -> None:
        """Raises OSError."""
        content = {
            "displayTimeUnit": "ms",
            "otherData": {"format": FORMAT, "version": VERSION, "ranks": self.about_ranks},
            "traceEvents": self.events,
        }
        path.write_text(json.dumps(content, separators=(",", ":")))


def about(recording: Recording) -> dict[str, Any]:
    """What a trace file says of a rank, besides its spans.

    counted_bytes: growth of the rank's counters during the recorded steps, of bytes that the copier
    copies. On GPUs a kernel gathers chosen experts: gathered_bytes, which no span shows.
    counted_wait_s: the same of exposed seconds; None on GPUs, where only every eighth step counts.
    """
    names = ("rank", "host", "memory", "model", "layers", "num_steps", "wanted_steps")
    counts, is_gpu = recording["counts"], recording["memory"] == "cuda"
    fetched = {mode: sum(by_peer) for mode, by_peer in counts["bytes_fetched"].items()}
    gathered = fetched.pop("selective") if is_gpu else 0
    return {name: recording[name] for name in names} | {
        "counted_bytes": sum(fetched.values()),
        "counted_wait_s": None if is_gpu else sum(counts["exposed_seconds"]),
        "gathered_bytes": gathered,
        "cancelled": counts["cancelled"],
        "dropped_bytes": recording["num_dropped_bytes"],
    }


def read_trace(path: Path) -> Trace:
    """Raises BadTrace for a file that can't be read, or that isn't from `vllm-dwdp trace`."""
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise BadTrace(f"can't read {path}: {error.strerror}.") from error
    except ValueError as error:
        raise BadTrace(
            f"{path} is no trace: expected JSON, {error}; give a file that 'vllm-dwdp trace "
            "record' has written."
        ) from error
    return _trace(path, content)


def _trace(path: Path, content: Any) -> Trace:
    found = content.get("otherData") if isinstance(content, dict) else None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise BadTrace(
            f"{path} is not from vllm-dwdp: its 'otherData' has no format '{FORMAT}'; give a file "
            "that 'vllm-dwdp trace record' has written."
        )
    if found.get("version") != VERSION:
        raise BadTrace(
            f"{path} has version {found.get('version')} of the format, expected {VERSION}; read it "
            "with the vllm-dwdp that wrote it."
        )
    return _checked(path, content, found)


def _checked(path: Path, content: Any, found: dict[str, Any]) -> Trace:
    """The trace, if all its figures are there."""
    try:
        spans = spans_in(content["traceEvents"])
        trace = Trace(spans, list(found["ranks"]), content["traceEvents"])
        _ = trace.ranks, trace.layers
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadTrace(
            f"{path} is damaged: {type(error).__name__} {error}; record the trace again."
        ) from error
    return trace
