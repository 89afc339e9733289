# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What the scheduler counts. Written by the thread that runs the model, read without locks."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from vllm_dwdp.config import FetchMode


@dataclass
class FetchCounters:
    """Counters of one rank; times in seconds, sizes in bytes.

    forwards, tokens: by layer, how often it ran, on how many tokens. exposed_seconds: by layer, how
    long it waited for its experts. bytes_fetched: by mode, then by peer of the group. steps: by the
    mode of the first MoE layer. copies: lists of copies that were started; slices: the
    slices in them.

    hits: prefetched layers whose copy had been started before they asked for it. step_hits: hits
    whose copy an earlier step had started. misses: prefetched layers whose copy started only when
    they asked. cancelled: copies that were cut short. selective_hits: chosen missing experts that
    the slot held already.
    """

    num_layers: int
    num_peers: int
    forwards: list[int] = field(init=False)
    tokens: list[int] = field(init=False)
    exposed_seconds: list[float] = field(init=False)
    bytes_fetched: dict[str, list[int]] = field(init=False)
    steps: dict[str, int] = field(init=False)
    copies: int = 0
    slices: int = 0
    hits: int = 0
    step_hits: int = 0
    misses: int = 0
    cancelled: int = 0
    selective_hits: int = 0

    def __post_init__(self) -> None:
        self.forwards = [0] * self.num_layers
        self.tokens = [0] * self.num_layers
        self.exposed_seconds = [0.0] * self.num_layers
        copying = (FetchMode.PREFETCH, FetchMode.SELECTIVE)
        self.bytes_fetched = {mode.value: [0] * self.num_peers for mode in copying}
        self.steps = {mode.value: 0 for mode in FetchMode}

    def add_copy(self, mode: FetchMode, bytes_by_peer: Sequence[int], num_slices: int) -> None:
        """Count one list of copies that was started."""
        total = self.bytes_fetched[mode]
        for peer, num_bytes in enumerate(bytes_by_peer):
            total[peer] += num_bytes
        self.copies += 1
        self.slices += num_slices

    def snapshot(self) -> dict[str, Any]:
        return asdict(self)
