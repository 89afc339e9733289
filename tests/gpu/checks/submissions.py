# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Submits many small lists of copies to the copy stream, then some lists of the largest size.

The argument is "batched" or "single". It runs in a process of its own, since drivers have crashed
here. Prints what it did, and fails if a byte is wrong.
"""

import sys
import time

import torch
from parts import make_device

from vllm_dwdp._core import CopyList, CudaCopier

COPIES_OF_A_LAYER = 14
"""The number of copies of a layer that has two tensors and seven peers."""

LARGEST_BATCH = 1024

IN_FLIGHT = 100


def main():
    device = make_device()
    driver = device.driver()
    source, target = (driver.create_slot_page(driver.granularity) for _ in range(2))
    mark = torch.arange(source.num_bytes, dtype=torch.int32).to(torch.uint8)
    driver.copy(source.address, mark.data_ptr(), mark.nbytes)
    copier = CudaCopier(driver, use_batches=sys.argv[1] == "batched")
    start = time.perf_counter()
    submit(copier, pieces(source, target, COPIES_OF_A_LAYER), device.num_submissions)
    submit(copier, pieces(source, target, LARGEST_BATCH), device.num_largest)
    seconds = time.perf_counter() - start
    check(device, driver, target, mark)
    print(f"{device.num_submissions} submissions in {seconds:.1f} s, right bytes")


def pieces(source, target, number):
    """The copy of a page, in so many pieces."""
    step = source.num_bytes // number
    starts = [i * step for i in range(number)]
    ends = [*starts[1:], source.num_bytes]
    return CopyList(
        [
            [
                (target.address + start, source.address + start, end - start)
                for start, end in zip(starts, ends, strict=True)
            ]
        ]
    )


def submit(copier, copies, times):
    for i in range(times):
        ticket = copier.submit(copies)
        if i % IN_FLIGHT == 0:
            copier.drain()
    copier.drain()
    assert copier.is_done(ticket)


def check(device, driver, target, mark):
    """Check the copied bytes through a view, since kernels can't read a page of a slot directly."""
    view = driver.reserve_view(target.num_bytes)
    view.map_slot_page(0, target)
    view.finish()
    stream = device.make_stream()
    with device.on(stream):
        found = device.read(stream, view, target.num_bytes)
    device.synchronize(stream)
    assert torch.equal(found.cpu(), mark), "bytes were copied wrongly"


if __name__ == "__main__":
    main()
