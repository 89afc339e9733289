# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Views become read-only in one call, or mapping by mapping; where both fail, a warning says so."""

import pytest
import torch
from support.fake_cuda import OUT_OF_MEMORY, bytes_of
from support.gpu_ranks import make_ranks

from vllm_dwdp._core import DriverError, HandleType

PAGE = 4096


def sealed_block(driver, value):
    source = torch.full((PAGE,), value, dtype=torch.uint8)
    block = driver.create_block(PAGE, 0)
    block.fill(0, source.data_ptr(), PAGE)
    block.seal()
    return block


class View:
    """A view of own, private and imported memory, a page of each; their bytes are 1, 0 and 2."""

    def __init__(self, fake):
        self.driver = fake.driver()
        peer = sealed_block(fake.driver(1), 2)
        self.view = self.driver.reserve_view(3 * PAGE)
        self.view.map_block(0, sealed_block(self.driver, 1))
        self.view.map_private(PAGE, PAGE)
        handle = peer.export_handle(HandleType.FILE_DESCRIPTOR)
        self.view.map_block(2 * PAGE, self.driver.import_block(handle, PAGE, 2 * PAGE))
        before = fake.calls("cuMemSetAccess")
        self.view.finish()
        self.num_calls = fake.calls("cuMemSetAccess") - before
        self.shown = bytes_of(self.view)[::PAGE].tolist()

    def is_writable(self, fake, page):
        """Whether a kernel can write to a page. The fake driver notes a violation if it can't."""
        stream = fake.make_stream()
        is_taken = fake.fill(stream, self.view.address + page * PAGE, 1, 7) == 0
        fake.destroy_stream(stream)
        return is_taken


def writable_pages(fake, made):
    found = [page for page in range(3) if made.is_writable(fake, page)]
    assert len(fake.violations) == 3 - len(found)
    fake.reset()
    return found


def test_one_call_makes_all_of_a_view_read_only(fake):
    made = View(fake)
    assert made.num_calls == 1
    assert made.shown == [1, 0, 2]
    assert made.driver.warnings == []
    assert writable_pages(fake, made) == []


def test_each_mapping_has_its_own_call_where_one_for_all_is_refused(fake):
    fake.refuse_mixed_access()
    made = View(fake)
    assert made.num_calls == 1 + 3
    assert made.shown == [1, 0, 2]
    assert made.driver.warnings == []
    assert writable_pages(fake, made) == []


def test_mapping_that_can_not_be_read_only_stays_writable_with_a_warning(fake):
    """Private pages were writable before, so read-only access is a downgrade for them."""
    fake.refuse_downgraded_access()
    made = View(fake)
    assert made.num_calls == 1 + 3 + 1
    assert made.shown == [1, 0, 2]
    (warning,) = made.driver.warnings
    assert "read-only cuMemSetAccess failed: CUDA_ERROR_NOT_SUPPORTED" in warning
    assert "serving goes on" in warning and "writes to an expert weight" in warning
    assert writable_pages(fake, made) == [1]


def test_warning_is_given_once_for_all_views(fake):
    fake.refuse_downgraded_access()
    ranks = make_ranks(fake)
    for rank in ranks:
        rank.scheduler.start()
        rank.step()
        assert rank.num_wrong_reads() == 0
        assert len(rank.driver.warnings) == 1


@pytest.mark.parametrize("refuse", ["refuse_mixed_access", "refuse_downgraded_access"])
def test_ranks_read_right_bytes_whatever_access_they_get(fake, refuse):
    getattr(fake, refuse)()
    for rank in make_ranks(fake, dwdp_size=3):
        rank.scheduler.start()
        rank.step()
        rank.step()
        assert rank.num_wrong_reads() == 0


def test_errors_of_another_kind_are_not_tried_again(fake):
    driver = fake.driver()
    view = driver.reserve_view(PAGE)
    view.map_private(0, PAGE)
    before = fake.calls("cuMemSetAccess")
    fake.fail("cuMemSetAccess", 1, OUT_OF_MEMORY)
    with pytest.raises(DriverError, match=r"cuMemSetAccess of 4096 bytes.*OUT_OF_MEMORY"):
        view.finish()
    assert fake.calls("cuMemSetAccess") == before + 1


def test_peer_out_of_reach_is_refused_with_what_it_takes(fake):
    fake.deny_peer_access(0, 1)
    with pytest.raises(DriverError, match=r"PEER_ACCESS_UNSUPPORTED.*NVLink, or PCIe peer to peer"):
        View(fake)
