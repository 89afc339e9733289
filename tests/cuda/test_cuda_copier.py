# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The copy stream: events alone order it, and batches stay within the driver's limits."""

import gc
import os
import threading
from types import SimpleNamespace

import pytest
import torch
from support.gpu_ranks import make_ranks

from vllm_dwdp._core import CopyList, CudaCopier, DriverError, HandleType

PAGE = 4096
UNSUPPORTED_UNDER_CAPTURE = 900


@pytest.fixture
def stream(fake):
    made = fake.make_stream()
    yield made
    fake.destroy_stream(made)


@pytest.mark.parametrize(
    ("use_batches", "symbol"), [(False, "cuMemcpyDtoDAsync"), (True, "cuMemcpyBatchAsync")]
)
def test_what_the_wrong_stream_orders_is_a_race(fake, stream, use_batches, symbol):
    """Tests the fake driver's checks: copies are ordered with a stream that runs no kernels."""
    (rank,) = make_ranks(fake, use_batches=use_batches)[:1]
    rank.scheduler._current_stream = lambda: stream
    for _ in range(3):
        rank.step()
    rank.num_wrong_reads()
    found = set(fake.violations)
    assert f"no event orders {symbol} of 8192 bytes after a kernel's read" in found, "WAR"
    assert f"no event orders a kernel's read after {symbol} of 8192 bytes" in found, "RAW"
    del rank
    gc.collect()
    fake.reset()


def test_missing_wait_shows_as_wrong_data(fake, stream):
    num_wrong = 0
    for seed in range(10):
        fake.reset(seed)
        (rank,) = make_ranks(fake)[:1]
        rank.scheduler._current_stream = lambda: stream
        for _ in range(3):
            rank.step()
        num_wrong += rank.num_wrong_reads()
        del rank
        gc.collect()
        fake.reset()
    assert num_wrong > 0


def test_rounds_of_many_copies_are_cut_into_batches_of_1024(fake, stream):
    driver = fake.driver()
    source, page = (driver.create_slot_page(PAGE) for _ in range(2))
    copier = CudaCopier(driver, use_batches=True)
    copies = [(page.address + i, source.address + i, 1) for i in range(2500)]
    fake.fill(stream, source.address, PAGE, 7)
    copier.wait(copier.submit(CopyList([copies]), stream), stream)
    assert fake.calls("cuMemcpyBatchAsync") == 3
    into = torch.zeros(2500, dtype=torch.uint8)
    fake.read_address(stream, page.address, into)
    fake.synchronize(stream)
    assert (into == 7).all()


def test_tickets_outlive_the_ring_of_events(fake, stream):
    driver = fake.driver()
    source, page = (driver.create_slot_page(PAGE) for _ in range(2))
    copier = CudaCopier(driver)
    fake.fill(stream, source.address, PAGE, 7)
    whole = CopyList([[(page.address, source.address, PAGE)]])
    tickets = [copier.submit(whole, stream) for _ in range(200)]
    copier.wait(tickets[0], stream)
    while not copier.is_done(tickets[-1]):
        pass
    assert all(copier.is_done(ticket) for ticket in tickets)


@pytest.mark.parametrize("ticket", [0, 2])
def test_ticket_of_nothing_is_refused(fake, stream, ticket):
    copier = CudaCopier(fake.driver())
    copier.submit(CopyList([]), stream)
    with pytest.raises(DriverError, match=f"expected the ticket .* got {ticket} of 1"):
        copier.wait(ticket, stream)


def progress_of(copier):
    """(ticket, layer, has begun, copies ended) at each look of another thread, until all end."""
    found = []

    def look():
        while (seen := copier.first_under_way()) is not None:
            found.append((seen.ticket, seen.layer, seen.has_begun, seen.num_ended))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return found


@pytest.mark.parametrize("use_batches", [False, True])
def test_another_thread_sees_how_far_copies_have_come(fake, stream, use_batches):
    """Two lists are under way, one behind the other. The copies of a batch end together."""
    driver = fake.driver()
    source, page = (driver.create_slot_page(PAGE) for _ in range(2))
    copies = [(page.address + at, source.address + at, 1024) for at in range(0, PAGE, 1024)]
    found = set()
    for seed in range(40):
        fake.reset(seed)
        copier = CudaCopier(driver, use_batches=use_batches)
        for layer in (7, 8):
            copier.submit(CopyList([copies[:2], copies[2:]], layer=layer), stream)
        before = fake.calls("cuThreadExchangeStreamCaptureMode")
        seen = progress_of(copier)
        assert seen == sorted(seen)
        exchanges = fake.calls("cuThreadExchangeStreamCaptureMode") - before
        assert exchanges == 2 * (len(seen) + 1), "no capture is broken, and the mode is set back"
        found.update(seen)
    ends = (0, 2, 4) if use_batches else range(5)
    possible = {(ticket, ticket + 6, True, ended) for ticket in (1, 2) for ended in ends}
    assert found <= possible | {(1, 7, False, 0), (2, 8, False, 0)}
    assert {progress for progress in possible if progress[3] < 4} <= found


def test_list_of_very_many_copies_has_few_marks(fake, stream):
    driver = fake.driver()
    source, page = (driver.create_slot_page(PAGE) for _ in range(2))
    copier = CudaCopier(driver)
    copies = [(page.address + i, source.address + i, 1) for i in range(2500)]
    before = fake.calls("cuEventRecord")
    copier.wait(copier.submit(CopyList([copies]), stream), stream)
    assert fake.calls("cuEventRecord") - before < 260
    while copier.first_under_way() is not None:
        pass
    fake.synchronize(stream)


def test_driver_without_batches_copies_one_by_one(fake, stream):
    fake.set_version(12_040)
    driver = fake.driver()
    copier = CudaCopier(driver, use_batches=True)
    assert not copier.uses_batches
    source, page = (driver.create_slot_page(PAGE) for _ in range(2))
    fake.fill(stream, source.address, PAGE, 9)
    copies = [(page.address + at, source.address + at, 1024) for at in range(0, PAGE, 1024)]
    copier.wait(copier.submit(CopyList([copies]), stream), stream)
    assert fake.calls("cuMemcpyDtoDAsync") == 4
    into = torch.zeros(PAGE, dtype=torch.uint8)
    fake.read_address(stream, page.address, into)
    fake.synchronize(stream)
    assert (into == 9).all()


@pytest.mark.parametrize("is_waiting", [True, False])
def test_stream_under_capture_is_refused(fake, stream, is_waiting):
    copier = CudaCopier(fake.driver())
    ticket = copier.submit(CopyList([]), stream)
    fake.begin_capture(stream)
    with pytest.raises(DriverError, match="expected a stream that runs, got one under graph"):
        copier.wait(ticket, stream) if is_waiting else copier.submit(CopyList([]), stream)
    graph = fake.end_capture(stream)
    assert graph is not None, "refusing leaves the capture whole"
    fake.destroy_graph(graph)


def num_ticks(call):
    """How often another thread ticks, at most a hundred times a second, while the call runs."""
    ticks, is_over = [], threading.Event()

    def tick():
        while not is_over.wait(0.01):
            ticks.append(1)

    thread = threading.Thread(target=tick)
    thread.start()
    call()
    is_over.set()
    thread.join()
    return len(ticks)


SLOW = {
    "cuMemcpyDtoDAsync": lambda made: made.copier.submit(made.copies, made.stream),
    "cuMemCreate": lambda made: made.driver.create_block(PAGE),
    "cuMemMap": lambda made: made.driver.reserve_view(PAGE).map_private(0, PAGE),
    "cuMemAddressReserve": lambda made: made.driver.reserve_view(PAGE),
    "cuMemExportToShareableHandle": lambda made: os.close(
        made.block.export_handle(HandleType.FILE_DESCRIPTOR)
    ),
}
"""By the driver's call that takes long, a call of the core that makes it."""


@pytest.mark.parametrize("symbol", SLOW)
def test_call_that_the_driver_holds_up_holds_up_no_other_thread(fake, stream, symbol):
    """Else the threads that watch a rank couldn't say that it hangs."""
    driver = fake.driver()
    source, page = (driver.create_slot_page(PAGE) for _ in range(2))
    block = driver.create_block(PAGE)
    block.seal()
    copies = CopyList([[(page.address, source.address, PAGE)]])
    copier = CudaCopier(driver)
    made = SimpleNamespace(driver=driver, copier=copier, copies=copies, stream=stream, block=block)
    fake.delay(symbol, 500)
    try:
        assert num_ticks(lambda: SLOW[symbol](made)) > 10
    finally:
        fake.delay(symbol, 0)
    copier.drain()
