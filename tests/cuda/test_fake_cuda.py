# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The fake driver notices each broken rule of the CUDA driver that dwdp relies on."""

import gc

import pytest
import torch

from vllm_dwdp._core import CopyList, CudaCopier, DriverError

PAGE = 4096


@pytest.fixture
def stream(fake):
    made = fake.make_stream()
    yield made
    fake.destroy_stream(made)


def test_write_through_a_view_is_a_violation(fake, stream):
    driver = fake.driver()
    view = driver.reserve_view(PAGE)
    view.map_private(0, PAGE)
    view.finish()
    assert fake.fill(stream, view.address, PAGE, 1) != 0
    assert fake.violations == ["a kernel's write writes memory without that access"]
    fake.reset()


def test_copy_into_a_view_is_refused(fake, stream):
    driver = fake.driver()
    page = driver.create_slot_page(PAGE)
    view = driver.reserve_view(PAGE)
    view.map_private(0, PAGE)
    view.finish()
    copier = CudaCopier(driver, use_batches=True)
    with pytest.raises(DriverError, match="cuMemcpyBatchAsync of 1 copies failed"):
        copier.submit(CopyList([[(view.address, page.address, PAGE)]]), stream)
    assert len(fake.violations) == 1
    fake.reset()


def test_read_of_unmapped_addresses_is_a_violation(fake, stream):
    view = fake.driver().reserve_view(PAGE)
    assert fake.read_address(stream, view.address, torch.zeros(PAGE, dtype=torch.uint8)) != 0
    assert fake.violations == ["a kernel's read reads memory without that access"]
    fake.reset()


def test_memory_shared_by_two_views_is_one_to_the_race_check(fake, stream):
    """The race check goes by physical memory, not by addresses."""
    driver = fake.driver()
    page = driver.create_slot_page(PAGE)
    views = []
    for _ in range(2):
        view = driver.reserve_view(PAGE)
        view.map_slot_page(0, page)
        view.finish()
        views.append(view)
    other = fake.make_stream()
    into = torch.zeros(2, PAGE, dtype=torch.uint8)
    fake.read_address(stream, views[0].address, into[0])
    fake.read_address(other, views[1].address, into[1])
    assert fake.violations == [], "two readers don't race"
    fake.fill(other, page.address, PAGE, 1)
    assert fake.violations == ["no event orders a kernel's write after a kernel's read"]
    fake.destroy_stream(other)
    del views, view
    gc.collect()
    fake.reset()


def test_work_runs_late_and_in_an_order_that_the_seed_picks(fake):
    """Nothing orders two streams, so each runs first with some of the seeds."""
    driver = fake.driver()
    page = driver.create_slot_page(PAGE)
    seen = set()
    for seed in range(20):
        fake.reset(seed)
        streams = [fake.make_stream() for _ in range(2)]
        for value, made in enumerate(streams):
            fake.fill(made, page.address, PAGE, value)
        into = torch.full((PAGE,), 9, dtype=torch.uint8)
        fake.read_address(streams[1], page.address, into)
        assert (into == 9).all(), "nothing has run yet"
        for made in streams:
            fake.synchronize(made)
        fake.read_address(streams[1], page.address, into)
        fake.synchronize(streams[1])
        seen.add(int(into[0]))
        for made in streams:
            fake.destroy_stream(made)
    assert seen == {0, 1}
    fake.reset()


def test_leaks_are_named(fake):
    block = fake.driver().create_block(PAGE)
    assert set(fake.leaks) == {
        "1 handles",
        "1 mappings",
        "1 address ranges",
        "1 retained contexts",
        f"{PAGE} bytes of GPU 0",
    }
    del block
