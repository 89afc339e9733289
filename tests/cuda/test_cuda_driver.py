# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Blocks, slots and views of GPU memory, over the fake driver."""

import ctypes
import gc
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.fake_cuda import (
    FABRIC,
    ILLEGAL_ADDRESS,
    LIBRARY,
    NOT_SUPPORTED,
    OUT_OF_MEMORY,
    POSIX_DESCRIPTORS,
    VIRTUAL_MEMORY,
    bytes_of,
)

from vllm_dwdp._core import CudaDriver, DriverError, HandleType, HostDriver

PAGE = 4096
CUDA_OF_DLPACK = 2
FD = HandleType.FILE_DESCRIPTOR


def pattern(num_bytes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_bytes,), dtype=torch.uint8, generator=generator)


def sealed_block(driver, source, view_offset=0):
    block = driver.create_block(source.nbytes, view_offset)
    block.fill(0, source.data_ptr(), source.nbytes)
    block.seal()
    return block


def test_view_of_own_peers_and_private_pages_shows_them_side_by_side(fake):
    driver, peer = fake.driver(), fake.driver(1)
    own, theirs, boundary = pattern(2 * PAGE, 1), pattern(3 * PAGE, 2), pattern(PAGE, 3)
    block = sealed_block(driver, own)
    exported = sealed_block(peer, theirs, 3 * PAGE)
    view = driver.reserve_view(6 * PAGE)
    view.map_block(0, block)
    view.map_private(2 * PAGE, PAGE)
    view.map_block(3 * PAGE, driver.import_block(exported.export_handle(FD), 3 * PAGE, 3 * PAGE))
    view.fill_private(2 * PAGE, boundary.data_ptr(), PAGE)
    calls = fake.calls("cuMemSetAccess")
    view.finish()
    assert fake.calls("cuMemSetAccess") == calls + 1, "one access call per view"
    tensor = bytes_of(view)
    del block, exported, driver, peer, view
    gc.collect()
    assert torch.equal(tensor, torch.cat([own, boundary, theirs]))


def device_of(capsule):
    """(kind of device, ordinal) of a DLPack tensor. Both follow the data pointer in its struct."""
    get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
    get_pointer.argtypes, get_pointer.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_void_p
    device = get_pointer(capsule, b"dltensor") + ctypes.sizeof(ctypes.c_void_p)
    return tuple((ctypes.c_int32 * 2).from_address(device))


def test_memory_of_a_gpu_says_so(fake):
    driver = fake.driver()
    assert driver.kind == "cuda"
    assert driver.granularity == PAGE
    view = fake.driver(1).reserve_view(PAGE)
    view.map_private(0, PAGE)
    view.finish()
    assert device_of(view.bytes_tensor()) == (CUDA_OF_DLPACK, 1)


def test_sealed_block_has_no_writable_alias_left(fake):
    driver = fake.driver()
    block = driver.create_block(PAGE)
    block.seal()
    assert fake.calls("cuMemUnmap") == 1
    with pytest.raises(DriverError, match=r"expected a block that is still open"):
        block.fill(0, pattern(PAGE).data_ptr(), PAGE)
    assert not block.is_write_sealed, "CUDA can't promise what peers do"


def test_private_pages_are_zeroed(fake):
    driver = fake.driver()
    view = driver.reserve_view(PAGE)
    view.map_private(0, PAGE)
    view.finish()
    assert not bytes_of(view).any()


def test_writing_to_a_view_kills_the_process(fake):
    body = f"""
import ctypes
from vllm_dwdp._core import CudaDriver
driver = CudaDriver(0, library={str(LIBRARY)!r})
view = driver.reserve_view(driver.granularity)
view.map_private(0, driver.granularity)
view.finish()
ctypes.memset(view.address, 1, 1)
"""
    ran = subprocess.run([sys.executable, "-c", body], capture_output=True, timeout=60, check=False)
    assert ran.returncode == -signal.SIGSEGV, ran.stderr


def test_blocks_of_another_memory_are_refused(fake):
    block = HostDriver().create_block(PAGE)
    block.seal()
    view = fake.driver().reserve_view(PAGE)
    with pytest.raises(DriverError, match=r"expected a block of GPU memory"):
        view.map_block(0, block)


def test_a_descriptor_of_another_kind_is_refused_and_closed(fake):
    fd = os.open("/dev/null", os.O_RDONLY)
    with pytest.raises(DriverError, match=r"cuMemImportFromShareableHandle of a peer's block"):
        fake.driver().import_block(fd, PAGE)
    with pytest.raises(OSError):
        os.fstat(fd)


def test_exported_descriptors_are_closed_on_exec(fake):
    fd = sealed_block(fake.driver(), pattern(PAGE)).export_handle(FD)
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_memory_that_goes_during_a_capture_stays_mapped(fake):
    """During a capture the driver can't wait for kernels that may still read the memory.

    The memory stays mapped until its process ends, so the test runs in a process of its own.
    """
    body = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import torch
from support.fake_cuda import FakeCuda
fake = FakeCuda()
fake.reset()
stream, driver = fake.make_stream(), fake.driver()
view = driver.reserve_view({PAGE})
view.map_private(0, {PAGE})
view.finish()
address, found = view.address, torch.ones({PAGE}, dtype=torch.uint8)
assert fake.read_address(stream, address, found) == 0
assert fake.begin_capture(stream) == 0
del view
assert fake.end_capture(stream) is None, "waiting broke the capture"
fake.synchronize(stream)
assert not found.any() and fake.violations == []
"""
    ran = subprocess.run([sys.executable, "-c", body], capture_output=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr.decode()


def test_memory_of_a_hidden_gpu_is_refused_with_that_reason(fake, monkeypatch):
    exported = sealed_block(fake.driver(1), pattern(PAGE))
    fd = exported.export_handle(FD)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(DriverError, match=r"INVALID_DEVICE.*must be visible.*CUDA_VISIBLE_DEVICES"):
        fake.driver().import_block(fd, PAGE)


def test_full_gpu_says_what_to_do(fake):
    driver = fake.driver()
    fake.fail("cuMemCreate", result=OUT_OF_MEMORY)
    with pytest.raises(DriverError, match=r"for a block of experts failed.*free GPU memory"):
        driver.create_block(PAGE)


def test_gpu_that_fills_up_gives_as_much_as_it_has(fake):
    driver = fake.driver()
    fake.set_capacity(3 * PAGE)
    blocks = [driver.create_block(PAGE) for _ in range(3)]
    with pytest.raises(DriverError, match=r"for a page of a slot failed.*lower dwdp.num_slots"):
        driver.create_slot_page(PAGE)
    with pytest.raises(DriverError, match=r"that link measurements copy to failed.*more ranks"):
        driver.create_scratch_page(PAGE)
    view = driver.reserve_view(PAGE)
    with pytest.raises(DriverError, match=r"for a private page of a view.*fetch to 'direct'"):
        view.map_private(0, PAGE)
    del blocks[0]
    view.map_private(0, PAGE)


def test_memory_that_is_never_exported_could_not_be(fake):
    """Exportable memory takes entries of a GPU's small tables."""
    driver = fake.driver()
    view = driver.reserve_view(PAGE)
    view.map_private(0, PAGE)
    page = driver.create_slot_page(PAGE)
    assert fake.num_exportable == 0
    block = driver.create_block(PAGE)
    assert fake.num_exportable == 1
    assert page.num_bytes == block.num_bytes


def test_pages_are_the_least_that_the_gpu_has(fake):
    fake.set_recommended_granularity(16 * PAGE)
    driver = fake.driver()
    assert driver.granularity == PAGE
    assert driver.create_block(PAGE).num_bytes == PAGE


def test_process_that_was_forked_after_cuda_is_told_to_be_spawned(fake):
    driver = fake.driver()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            driver.create_block(PAGE)
        except DriverError as error:
            os.write(writer, str(error).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    sentence = os.read(reader, 1000).decode()
    os.close(reader)
    assert "CUDA_ERROR_NOT_INITIALIZED" in sentence
    assert "VLLM_WORKER_MULTIPROC_METHOD=spawn" in sentence


def test_context_that_a_kernel_broke_says_to_restart(fake):
    driver = fake.driver()
    fake.break_context(result=ILLEGAL_ADDRESS)
    with pytest.raises(DriverError, match=r"CUDA_ERROR_ILLEGAL_ADDRESS.*restart the rank"):
        driver.create_block(PAGE)
    fake.reset()
    assert driver.create_block(PAGE).num_bytes == PAGE


def test_gpu_without_virtual_memory_is_refused_by_that_attribute(fake):
    fake.set_attribute(VIRTUAL_MEMORY, 0)
    with pytest.raises(DriverError, match="DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED"):
        fake.driver()


class TestFabricHandles:
    @pytest.fixture
    def domain(self, fake, monkeypatch, tmp_path):
        """A directory that stands for an NVLink domain; no memory may be left in it."""
        monkeypatch.setenv("FAKE_CUDA_FABRIC", str(tmp_path))
        yield tmp_path
        gc.collect()
        assert not any(tmp_path.iterdir())

    def test_memory_is_shared_by_both_types(self, fake, domain):
        driver, peer, source = fake.driver(), fake.driver(1), pattern(PAGE)
        assert peer.obstacles == {FD: None, HandleType.FABRIC: None}
        exported = sealed_block(peer, source)
        for handle_type in HandleType:
            view = driver.reserve_view(PAGE)
            view.map_block(0, driver.import_block(exported.export_handle(handle_type), PAGE))
            view.finish()
            assert torch.equal(bytes_of(view), source)

    def test_handle_is_bytes_that_work_more_than_once(self, fake, domain):
        driver = fake.driver()
        exported = sealed_block(driver, pattern(PAGE))
        handle = exported.export_handle(HandleType.FABRIC)
        assert isinstance(handle, bytes) and len(handle) == 64
        assert [driver.import_block(handle, PAGE).num_bytes for _ in range(2)] == [PAGE, PAGE]

    def test_peers_gpu_may_be_invisible(self, fake, domain, monkeypatch):
        exported = sealed_block(fake.driver(1), pattern(PAGE))
        handle = exported.export_handle(HandleType.FABRIC)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
        assert fake.driver().import_block(handle, PAGE).num_bytes == PAGE

    def test_gpu_without_the_attribute_has_descriptors_alone(self, fake, domain):
        fake.set_attribute(FABRIC, 0)
        driver = fake.driver()
        obstacles = driver.obstacles
        assert obstacles[FD] is None
        assert "CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_FABRIC_SUPPORTED" in obstacles[HandleType.FABRIC]
        fd = sealed_block(driver, pattern(PAGE)).export_handle(FD)
        assert driver.import_block(fd, PAGE).num_bytes == PAGE

    def test_gpu_without_descriptors_shares_by_fabric(self, fake, domain):
        fake.set_attribute(POSIX_DESCRIPTORS, 0)
        driver = fake.driver()
        assert "POSIX_FILE_DESCRIPTOR_SUPPORTED" in driver.obstacles[FD]
        exported = sealed_block(driver, pattern(PAGE))
        handle = exported.export_handle(HandleType.FABRIC)
        assert driver.import_block(handle, PAGE).num_bytes == PAGE

    def test_missing_imex_is_an_obstacle_that_says_what_to_do(self, fake):
        obstacle = fake.driver().obstacles[HandleType.FABRIC]
        assert "cuMemCreate of a page with a fabric handle failed" in obstacle
        assert "CUDA_ERROR_NOT_PERMITTED" in obstacle
        assert "nvidia-imex" in obstacle and "/dev/nvidia-caps-imex-channels" in obstacle

    @pytest.mark.parametrize("symbol", ["cuMemCreate", "cuMemExportToShareableHandle"])
    def test_failed_trial_is_an_obstacle(self, fake, domain, symbol):
        fake.fail(symbol, result=NOT_SUPPORTED)
        driver = fake.driver()
        assert f"{symbol} of a page" in driver.obstacles[HandleType.FABRIC]
        assert sealed_block(driver, pattern(PAGE)).num_bytes == PAGE

    def test_full_gpu_is_no_obstacle_but_an_error(self, fake, domain):
        fake.fail("cuMemCreate", result=OUT_OF_MEMORY)
        with pytest.raises(DriverError, match="free GPU memory"):
            fake.driver()

    def test_gpu_with_neither_is_refused_by_both_reasons(self, fake):
        fake.set_attribute(POSIX_DESCRIPTORS, 0)
        with pytest.raises(DriverError) as refused:
            fake.driver()
        sentence = str(refused.value)
        assert "CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED" in sentence
        assert "nvidia-imex" in sentence

    def test_driver_that_never_heard_of_them_has_descriptors_alone(self, fake, domain):
        fake.set_version(12_020)
        assert "HANDLE_TYPE_FABRIC_SUPPORTED" in fake.driver().obstacles[HandleType.FABRIC]

    def test_handle_of_another_domain_is_refused_with_what_it_takes(self, fake, domain):
        with pytest.raises(DriverError, match=r"NOT_PERMITTED.*one NVLink domain"):
            fake.driver().import_block(b"fake-cuda-9-elsewhere".ljust(64, b"\0"), PAGE)

    def test_handle_of_another_length_is_refused(self, fake, domain):
        with pytest.raises(DriverError, match="expected a fabric handle of 64 bytes, got 3"):
            fake.driver().import_block(b"abc", PAGE)


def test_a_driver_older_than_a_symbol_is_refused(fake):
    fake.set_version(10_000)
    with pytest.raises(DriverError, match=r"expected \w+ of CUDA 1\d\.\d .*update NVIDIA's driver"):
        fake.driver()


def test_each_symbol_is_asked_for_at_its_own_version(fake):
    """A driver refuses versions above its own; only batched copies need more than CUDA 11.3."""
    fake.set_version(11_030)
    driver = fake.driver()
    assert sealed_block(driver, pattern(PAGE)).num_bytes == PAGE


def test_without_a_driver_the_core_imports_and_says_what_is_missing():
    with pytest.raises(DriverError, match=r"expected the CUDA driver in no-such-library.so"):
        CudaDriver(0, library="no-such-library.so")
