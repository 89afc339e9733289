# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What one rank did: counted while the simulation runs."""

from dataclasses import dataclass, field

from vllm_dwdp.simulation.chunk import Chunk


@dataclass
class Tally:
    """Counts and seconds of a rank.

    exposed_s: seconds in which it had to wait: for experts (DWDP) or for other ranks (expert
        parallelism).
    ttft_s: for each prompt that it has served, the seconds from its arrival to the end of the step
        that computed its last token.
    """

    first_s: float | None = None
    last_s: float = 0.0
    steps: int = 0
    tokens: int = 0
    busy_s: float = 0.0
    exposed_s: float = 0.0
    ttft_s: list[float] = field(default_factory=list)

    def count(self, chunk: Chunk, began_s: float, ended_s: float) -> None:
        """A step of this rank has ended. A dummy step, without tokens, counts as busy time only."""
        self.busy_s += ended_s - began_s
        if not chunk.pieces:
            return
        self.first_s = began_s if self.first_s is None else self.first_s
        self.last_s = ended_s
        self.steps += 1
        self.tokens += chunk.num_tokens
        served = (piece.request for piece in chunk.pieces if piece.is_last)
        self.ttft_s.extend(ended_s - request.arrival_s for request in served)
