# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The copier's threads and Python: neither waits for the other."""

import threading

import torch

from vllm_dwdp._core import CopyList, HostCopier


def copy_list(destination, source):
    return CopyList([[(destination.data_ptr(), source.data_ptr(), source.nbytes)]])


def test_lists_may_be_dropped_while_they_run():
    """A copier thread may drop the last reference to a list; it would hang if it needed the GIL."""
    copier = HostCopier(num_threads=2)
    source = torch.arange(1 << 16)
    destination = torch.zeros_like(source)
    for _ in range(5000):
        ticket = copier.submit(copy_list(destination, source))
    copier.wait(ticket)
    assert torch.equal(destination, source)


def test_waiting_lets_other_threads_run():
    copier = HostCopier()
    source = torch.zeros(1 << 24)
    destination = torch.empty_like(source)
    ran = threading.Event()
    ticket = [copier.submit(copy_list(destination, source)) for _ in range(60)][-1]
    thread = threading.Thread(target=ran.set)
    waiter = threading.Thread(target=copier.wait, args=(ticket,))
    waiter.start()
    thread.start()
    assert ran.wait(10)
    assert not copier.is_done(ticket), "the wait still lasts"
    waiter.join(60)
    assert copier.is_done(ticket)
