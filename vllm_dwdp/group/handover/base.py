# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""How handles of one type travel between the ranks of a group."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from vllm_dwdp._core import HandleType
from vllm_dwdp.memory.handle import Handle

HandleSource = Callable[[HandleType, int], list[tuple[Handle, int]]]
"""(type, parcel) -> (handle, bytes) of each block, owned by the caller."""


class HandleExchange(ABC):
    """One rank's end. Ranks count in the group."""

    @abstractmethod
    def open(self) -> None:
        """Post this rank's handles, or where they are, and get ready to take the peers'.

        Raises RankFailed or GroupError: nobody to vote with, the end of the start.
        """

    @abstractmethod
    def take_handles(
        self, peer_rank: int, parcel: int, expected_sizes: Sequence[int]
    ) -> Sequence[Handle]:
        """A peer's handles for a parcel, owned by the caller.

        Raises ExchangeRefused when the peer can't export them, or has other blocks than expected.
        """

    @abstractmethod
    def close(self) -> None:
        """Hand over nothing any more. May be called twice, and without `open`."""
