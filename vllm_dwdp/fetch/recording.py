# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What a recorder hands out: when layers ran, waited and were fetched, in some steps of one rank.

Times are nanoseconds of the host's monotonic clock (time.perf_counter_ns), which all processes of
a host share; they begin anew when the host starts.
"""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple


class LayerRun(NamedTuple):
    """One run of a MoE layer, from the call of the fetcher to the release of the slot.

    step: counts the recorded steps from 0. num_tokens: padded tokens of the step. mode: the fetch
    mode. slot: the slot that the kernel reads, -1 for none. is_hit: whether a prefetch for the
    layer had started before the layer asked for it. kernel_ns, kernel_end_ns: when the kernel could
    begin, and when it had ended; on a GPU in its stream, otherwise in the calling thread.
    """

    step: int
    layer: int
    num_tokens: int
    mode: str
    slot: int
    is_hit: bool
    begin_ns: int
    kernel_ns: int
    kernel_end_ns: int
    end_ns: int


class LayerWait(NamedTuple):
    """A layer waited for its experts in a step, counted as in LayerRun."""

    step: int
    layer: int
    begin_ns: int
    end_ns: int


class LayerCopy(NamedTuple):
    """Copies for one layer from one rank of the group, which ran between two times.

    layer: -1 if it isn't known. peer: the rank of the group that was read; this rank's own number
    stands for its host's memory, and -1 for a rank that isn't known. num_copies: slices that this
    entry stands for. busy_ns: time of the slices alone.
    """

    ticket: int
    layer: int
    peer: int
    num_bytes: int
    num_copies: int
    begin_ns: int
    end_ns: int
    busy_ns: int


@dataclass(frozen=True)
class StepRecording:
    """Some steps of one rank.

    num_steps: steps that were recorded; wanted_steps: steps that were asked for. wall_ns and
    clock_ns: the time since 1970 and the monotonic time of one moment. num_dropped_bytes: bytes of
    copies that found no room among `copies`. counts: how much the rank's counters have grown
    during the recorded steps; see FetchCounters.
    """

    num_steps: int
    wanted_steps: int
    wall_ns: int
    clock_ns: int
    runs: tuple[LayerRun, ...]
    waits: tuple[LayerWait, ...]
    copies: tuple[LayerCopy, ...]
    num_dropped_bytes: int
    counts: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """As plain lists and dictionaries, which can be sent as JSON."""
        entries = ("runs", "waits", "copies")
        return asdict(self) | {name: [list(e) for e in getattr(self, name)] for name in entries}


def growth(before: Any, after: Any) -> Any:
    """How much numbers have grown, in dictionaries and lists of the same form."""
    if isinstance(after, dict):
        return {key: growth(before[key], after[key]) for key in after}
    if isinstance(after, list):
        return [growth(*pair) for pair in zip(before, after, strict=True)]
    return after - before
