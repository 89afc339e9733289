# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The pool of offline ranks: its waits notice signals, and it reserves the rendezvous port."""

import signal
import socket
import threading
import time

import pytest

from vllm_dwdp.engine.setup.local_address import reserved_port
from vllm_dwdp.group.meet.store import Endpoint, RendezvousStore
from vllm_dwdp.offline.errors import RankDied
from vllm_dwdp.offline.local_ranks import LocalRanks
from vllm_dwdp.offline.pickled_options import PickledOptions
from vllm_dwdp.offline.prompt_queue import PromptQueue
from vllm_dwdp.offline.rank_pool import RankPool

SIGNAL_AFTER_S, NEWS_AFTER_S = 0.3, 10


def test_ctrl_c_that_another_thread_takes_ends_the_wait():
    pool = RankPool(LocalRanks(1, PickledOptions.of({})))
    is_over = threading.Event()

    def interrupt():
        time.sleep(SIGNAL_AFTER_S)
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)
        is_over.wait(NEWS_AFTER_S)
        pool._news.put((None, ("answers", [])))

    thread = threading.Thread(target=interrupt)
    begin = time.monotonic()
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        pool._collect(PromptQueue(0, ["Emma was"], limit=1))
        time.sleep(0)  # an interrupt that missed the wait is raised here
    seconds = time.monotonic() - begin
    is_over.set()
    thread.join()
    assert seconds < NEWS_AFTER_S / 2


class FullCluster:
    """Ranks for which no node has room any more."""

    def starting(self):
        raise ValueError("expected Ray nodes with room for 2 ranks")


def test_ranks_that_can_not_be_started_again_have_died():
    with pytest.raises(RankDied, match="none could be started: expected Ray nodes with room"):
        RankPool(FullCluster())._start_again()


def test_only_rank_0_gets_the_port_that_the_ranks_were_told():
    with reserved_port() as port:
        with socket.socket() as other, pytest.raises(OSError, match="Address already in use"):
            other.bind(("127.0.0.1", port))
        host = RendezvousStore(Endpoint("127.0.0.1", port), timeout_s=10)
        host.host(b"rank 0")
        guest = RendezvousStore(Endpoint("127.0.0.1", port), timeout_s=10)
        assert guest.reach() == b"rank 0"
        guest.close()
        host.close()
