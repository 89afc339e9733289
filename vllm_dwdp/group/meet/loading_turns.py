# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Lets the ranks of a group load in turns, where a host's memory doesn't hold all at once.

A rank takes more memory while it loads than afterwards: for what it has read, and for what vLLM
makes of it. Ranks on other hosts don't wait for each other.
"""

import socket

from vllm_dwdp.group.meet.rendezvous import Rendezvous

LOADED = "loaded"


class LoadingTurns:
    """One rank's turn. concurrency: ranks of a host that load at the same time; None: all."""

    def __init__(self, rendezvous: Rendezvous, concurrency: int | None) -> None:
        self._rendezvous = rendezvous
        self._concurrency = concurrency

    def begin(self) -> None:
        """Wait for this rank's turn; every rank of the group calls it. Raises RankFailed.

        A rank waits for the one that is `concurrency` ranks before it on its host.
        """
        host = socket.gethostname()
        hosts = [name.decode() for name in self._rendezvous.gather("loading turns", host.encode())]
        if self._concurrency is None:
            return
        ranks = zip(self._rendezvous.job_ranks, hosts, strict=True)
        here = [rank for rank, name in ranks if name == host]
        place = here.index(self._rendezvous.job_rank)
        if place >= self._concurrency:
            self._rendezvous.wait_for(LOADED, here[place - self._concurrency])

    def end(self) -> None:
        """Note that vLLM has loaded and prepared this rank's weights. Raises RankFailed."""
        self._rendezvous.post(LOADED)
