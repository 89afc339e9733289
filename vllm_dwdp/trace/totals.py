# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Sums up a trace: what each rank computed, fetched and waited for, and which layers waited."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vllm_dwdp.trace.span import Kind, Span, common, total, union

MAX_DIFFERENCE = 0.01
"""How far totals may be from the rank's counters, as a share of the counters' value."""


@dataclass(frozen=True)
class Check:
    """A total of the trace beside what the rank's own counters say of the same steps.

    counted: None if the counters don't say it exactly.
    """

    traced: float
    counted: float | None

    @property
    def agrees(self) -> bool:
        """Whether they differ by less than MAX_DIFFERENCE, or there is nothing to compare."""
        if self.counted is None:
            return True
        return abs(self.traced - self.counted) <= MAX_DIFFERENCE * max(self.counted, 1e-6)


@dataclass(frozen=True)
class RankTotals:
    """One rank. Times in seconds.

    tokens: padded tokens of all steps. step_s: of the steps, without the time between them.
    kernel_s: of the kernels that run experts. between_s: of attention and all else between two MoE
    layers of a step. wait_s: for which layers waited for experts. copied_bytes: by the name of the
    place that was read. copy_s: in which at least one copy ran. hidden_share: the share of copy_s
    in which no layer waited; None if nothing was copied. bytes, waits: compared with the counters.
    """

    rank: int
    num_steps: int
    tokens: int
    modes: dict[str, int]
    step_s: float
    kernel_s: float
    between_s: float
    wait_s: float
    copied_bytes: dict[str, int]
    copy_s: float
    hidden_share: float | None
    bytes: Check
    waits: Check

    @property
    def calls_s(self) -> float:
        """Seconds of the steps in calls of the scheduler, without waits: copies are started there.

        Another thread may take the core of the calling one meanwhile.
        """
        return self.step_s - self.kernel_s - self.between_s - self.wait_s

    def to_dict(self) -> dict[str, Any]:
        checks = {
            name: vars(check) | {"agrees": check.agrees}
            for name, check in (("bytes", self.bytes), ("waits", self.waits))
        }
        return asdict(self) | checks | {"calls_s": self.calls_s}


@dataclass(frozen=True)
class LayerTotals:
    """One MoE layer of one rank. Times in seconds.

    wait_s: for which it waited in all recorded steps; worst_wait_s: in the step where it waited
    longest. num_late: its prefetches that had not started when it asked for them.
    """

    rank: int
    layer: int
    wait_s: float
    worst_wait_s: float
    kernel_s: float
    copied_bytes: int
    num_late: int


def rank_totals(spans: Iterable[Span], about_ranks: Sequence[dict[str, Any]]) -> list[RankTotals]:
    """By rank. about_ranks: what the trace file says of each rank, see trace_file.about."""
    of_rank = _by(spans, lambda span: span.rank)
    return [_rank_totals(of_rank[about["rank"]], about) for about in about_ranks]


def layer_totals(spans: Iterable[Span]) -> list[LayerTotals]:
    """All layers of all ranks, those that waited longest first."""
    of_layer: dict[tuple[int, int], list[Span]] = _by(
        (span for span in spans if span.kind in (Kind.KERNEL, Kind.WAIT, Kind.COPY)),
        lambda span: (span.rank, span.args["layer"]),
    )
    found = [_layer_totals(*key, spans) for key, spans in of_layer.items() if key[1] >= 0]
    return sorted(found, key=lambda one: (-one.wait_s, one.rank, one.layer))


def _rank_totals(spans: Sequence[Span], about: dict[str, Any]) -> RankTotals:
    of_kind = _by(spans, lambda span: span.kind)
    copies = union(span.interval for span in of_kind[Kind.COPY])
    waits = union(span.interval for span in of_kind[Kind.WAIT])
    copied: Counter[str] = Counter()
    for span in of_kind[Kind.COPY]:
        copied[span.args["peer"]] += span.args["bytes"]
    steps = of_kind[Kind.STEP]
    wait_s = _seconds(of_kind[Kind.WAIT])
    return RankTotals(
        rank=about["rank"],
        num_steps=len(steps),
        tokens=sum(span.args["tokens"] for span in steps),
        modes=dict(Counter(span.args["mode"] for span in steps)),
        step_s=_seconds(steps),
        kernel_s=_seconds(of_kind[Kind.KERNEL]),
        between_s=_seconds(of_kind[Kind.BETWEEN]),
        wait_s=wait_s,
        copied_bytes=dict(copied),
        copy_s=total(copies) / 1e6,
        hidden_share=1 - total(common(copies, waits)) / total(copies) if copies else None,
        bytes=Check(copied.total(), about["counted_bytes"]),
        waits=Check(wait_s, about["counted_wait_s"]),
    )


def _layer_totals(rank: int, layer: int, spans: Sequence[Span]) -> LayerTotals:
    of_kind = _by(spans, lambda span: span.kind)
    by_step = _by(of_kind[Kind.WAIT], lambda span: span.args["step"])
    kernels = of_kind[Kind.KERNEL]
    return LayerTotals(
        rank=rank,
        layer=layer,
        wait_s=_seconds(of_kind[Kind.WAIT]),
        worst_wait_s=max(map(_seconds, by_step.values()), default=0.0),
        kernel_s=_seconds(kernels),
        copied_bytes=sum(span.args["bytes"] for span in of_kind[Kind.COPY]),
        num_late=sum(span.args["mode"] == "prefetch" for span in kernels if not _is_early(span)),
    )


def _is_early(kernel: Span) -> bool:
    return bool(kernel.args["prefetched"])


def _seconds(spans: Iterable[Span]) -> float:
    return sum(span.us for span in spans) / 1e6


def _by(spans: Iterable[Span], key: Any) -> defaultdict[Any, list[Span]]:
    found: defaultdict[Any, list[Span]] = defaultdict(list)
    for span in spans:
        found[key(span)].append(span)
    return found
