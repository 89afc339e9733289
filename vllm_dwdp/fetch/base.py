# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Protocols: what the parts of fetching call of each other and of the core."""

from typing import NamedTuple, Protocol

from vllm_dwdp._core import CopyList
from vllm_dwdp.config import FetchMode


class ChosenIds(NamedTuple):
    """The router's choice: the address of dense expert ids, their number, the bytes of one."""

    address: int
    num_ids: int
    id_bytes: int


class Fetcher(Protocol):
    """Decides how a layer gets its experts: the scheduler, or what takes its place at start-up."""

    def wait(self, layer: int, num_tokens: int, chosen: ChosenIds | None = None) -> FetchMode: ...
    def release(self, layer: int, mode: FetchMode) -> None: ...


class InPlace:
    """The fetcher before serving starts: layers read peers' memory in place; nothing is counted."""

    def wait(self, layer: int, num_tokens: int, chosen: ChosenIds | None = None) -> FetchMode:
        return FetchMode.DIRECT

    def release(self, layer: int, mode: FetchMode) -> None:
        pass


class Copier(Protocol):
    """What the scheduler calls of `vllm_dwdp._core.Copier`."""

    def submit(self, copies: CopyList, stream: int) -> int: ...
    def cancel(self, ticket: int) -> None: ...
    def wait(self, ticket: int, stream: int) -> None: ...
    def drain(self) -> None: ...


class Chosen(Protocol):
    """What the scheduler calls of `vllm_dwdp._core.ChosenExperts`."""

    def fetch(self, address: int, num_ids: int, id_bytes: int) -> tuple[list[int], int, int]: ...
    def forget(self) -> None: ...


class Copies(Protocol):
    """What the scheduler reads of `vllm_dwdp.memory.slots.LayerCopies`."""

    @property
    def everything(self) -> CopyList: ...
    @property
    def chosen(self) -> Chosen | None: ...
    @property
    def bytes_by_peer(self) -> tuple[int, ...]: ...
    @property
    def num_slices(self) -> int: ...
