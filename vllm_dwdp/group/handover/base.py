# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""How handles of one type travel between the ranks of a group."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from vllm_dwdp._core import HandleType
from vllm_dwdp.memory.handle import Handle

HandleSource = Callable[[HandleType, int], list[tuple[Handle, int]]]
"""(type, parcel) -> (handle, bytes) of each block; the caller owns the handles."""


class HandleExchange(ABC):
    """One rank's end of the exchange. `peer_rank` counts within the group.

    Experts travel in parcels, one for the blocks of each layer and one for the fringe: see
    layout/rank_layout.py.
    """

    @abstractmethod
    def open(self) -> None:
        """Post this rank's handles, or the address where peers can ask for them.

        Raises RankFailed or GroupError, which end the start: without all ranks there is no vote.
        """

    @abstractmethod
    def take_handles(
        self, peer_rank: int, parcel: int, expected_sizes: Sequence[int]
    ) -> Sequence[Handle]:
        """Take a peer's handles of one parcel; the caller owns them.

        expected_sizes: the bytes of each block. Raises ExchangeRefused when the peer can't export
        the blocks, or has blocks of other sizes.
        """

    @abstractmethod
    def close(self) -> None:
        """Stop handing over memory. May be called twice, and without `open`."""
