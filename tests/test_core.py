# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The compiled core as Python sees it: tensors, life times, real processes, page tables."""

import gc
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import torch

from vllm_dwdp._core import DriverError, HandleType, HostDriver, MemoryDriver

PAGE = HostDriver().granularity
HUGE = 2 << 20
FD = HandleType.FILE_DESCRIPTOR
DTYPES = [
    torch.uint8,
    torch.int8,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
]


def pattern(num_bytes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (num_bytes,), dtype=torch.uint8, generator=generator)


def sealed_block(driver, source, view_offset=0):
    block = driver.create_block(source.nbytes, view_offset)
    block.fill(0, source.data_ptr(), source.nbytes)
    block.seal()
    return block


def view_of(driver, block):
    view = driver.reserve_view(block.num_bytes)
    view.map_block(0, block)
    view.finish()
    return view


def smaps_of(address):
    """The /proc/self/smaps fields of the mapping that starts at `address`."""
    with open("/proc/self/smaps") as smaps:
        entry = smaps.read().partition(f"\n{address:x}-")[2]
    fields = {}
    for line in entry.splitlines()[1:]:
        key, _, value = line.partition(":")
        if key in fields or "-" in key:
            break
        fields[key] = value.split()
    return fields


def is_mapped(name):
    with open("/proc/self/maps") as maps:
        return f"memfd:{name} " in maps.read()


def run_python(body):
    code = textwrap.dedent(body)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )


class TestTensor:
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_round_trip_keeps_address_and_bytes(self, dtype):
        source = pattern(2 * PAGE)
        driver = HostDriver()
        view = view_of(driver, sealed_block(driver, source))
        tensor = torch.from_dlpack(view.bytes_tensor()).view(dtype)
        assert tensor.data_ptr() == view.address
        assert tensor.dtype == dtype
        assert torch.equal(tensor.view(torch.uint8), source)

    def test_keeps_the_mapping_alive_until_the_last_tensor_is_gone(self):
        source = pattern(2 * PAGE)
        driver = HostDriver(name="keep-alive")
        view = view_of(driver, sealed_block(driver, source))
        tensor = torch.from_dlpack(view.bytes_tensor())
        del view, driver
        gc.collect()
        tail = tensor.view(torch.bfloat16)[PAGE // 2 :]
        del tensor
        assert torch.equal(tail.view(torch.uint8), source[PAGE:])
        assert is_mapped("keep-alive")
        del tail
        gc.collect()
        assert not is_mapped("keep-alive")

    def test_needs_a_finished_view(self):
        view = HostDriver().reserve_view(PAGE)
        with pytest.raises(DriverError, match="finish it first"):
            view.bytes_tensor()

    def test_a_write_kills_the_process_and_changes_nothing(self):
        done = run_python(f"""
            import torch
            from vllm_dwdp._core import HostDriver
            view = HostDriver().reserve_view({PAGE})
            view.map_private(0, {PAGE})
            view.finish()
            tensor = torch.from_dlpack(view.bytes_tensor())
            print(int(tensor[0]), flush=True)
            tensor[0] = 1
            print("survived", flush=True)
        """)
        assert done.returncode == -signal.SIGSEGV, done.stderr
        assert done.stdout == "0\n"


class TestDriver:
    def test_base_class_cannot_be_made(self):
        assert isinstance(HostDriver(), MemoryDriver)
        with pytest.raises(TypeError):
            MemoryDriver()

    def test_says_what_it_is(self):
        driver = HostDriver()
        assert driver.kind == "host"
        assert driver.granularity == os.sysconf("SC_PAGESIZE")
        assert driver.warnings == []

    def test_a_missing_numa_node_is_a_warning(self):
        driver = HostDriver(numa_node=1000)
        sealed_block(driver, pattern(PAGE))
        assert len(driver.warnings) == 1
        assert "NUMA node 1000" in driver.warnings[0]

    def test_empty_and_odd_sizes_are_refused(self):
        driver = HostDriver()
        with pytest.raises(DriverError, match="at least one page"):
            driver.create_block(0)
        with pytest.raises(DriverError, match="whole pages"):
            driver.reserve_view(PAGE + 1)

    def test_the_limit_on_mappings_is_named(self):
        done = run_python(f"""
            from vllm_dwdp._core import DriverError, HostDriver
            limit = int(open("/proc/sys/vm/max_map_count").read())
            if limit > 300_000:
                raise SystemExit(77)
            view = HostDriver().reserve_view(2 * limit * {PAGE})
            try:
                for page in range(0, 2 * limit, 2):
                    view.map_private(page * {PAGE}, {PAGE})
            except DriverError as error:
                message = str(error)
            del view
            print(message)
        """)
        if done.returncode == 77:
            pytest.skip("vm.max_map_count is too high to reach")
        assert "mmap" in done.stdout and "vm.max_map_count" in done.stdout, done.stderr


class TestSharing:
    def test_two_processes_read_one_block(self):
        source = pattern(HUGE + PAGE, seed=1)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        peer = subprocess.Popen(
            [sys.executable, "-c", PEER, str(theirs.fileno()), str(source.nbytes)],
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        fd = sealed_block(HostDriver(), source).export_handle(FD)
        socket.send_fds(ours, [b"block"], [fd])
        os.close(fd)
        ours.settimeout(120)
        answer = ours.recv(source.nbytes)
        assert peer.wait(60) == 0
        assert answer == bytes(source[-PAGE:].tolist())

    def test_a_refused_import_closes_the_descriptor(self):
        fd = sealed_block(HostDriver(), pattern(PAGE)).export_handle(FD)
        with pytest.raises(DriverError, match=f"{2 * PAGE} bytes .* got {PAGE}"):
            HostDriver().import_block(fd, 2 * PAGE)
        with pytest.raises(OSError):
            os.fstat(fd)

    def test_nothing_is_left_behind(self):
        gc.collect()
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            driver = HostDriver(name="left-behind")
            block = sealed_block(driver, pattern(PAGE))
            view_of(driver, HostDriver().import_block(block.export_handle(FD), PAGE))
        del driver, block
        gc.collect()
        assert len(os.listdir("/proc/self/fd")) == before
        assert not is_mapped("left-behind")


PEER = """
import ctypes, os, socket, sys
from vllm_dwdp._core import HostDriver
link = socket.socket(fileno=int(sys.argv[1]))
num_bytes = int(sys.argv[2])
_, (fd,), _, _ = socket.recv_fds(link, 16, 1)
driver = HostDriver()
view = driver.reserve_view(num_bytes)
view.map_block(0, driver.import_block(fd, num_bytes))
view.finish()
page = driver.granularity
link.send(ctypes.string_at(view.address + num_bytes - page, page))
"""


class TestPages:
    def test_finished_view_is_populated_and_kept_out_of_core_dumps(self):
        source = pattern(64 * PAGE)
        driver = HostDriver()
        view = view_of(driver, sealed_block(driver, source))
        fields = smaps_of(view.address)
        assert fields["Rss"] == fields["Size"] == [str(source.nbytes // 1024), "kB"]
        assert "dd" in fields["VmFlags"]

    def test_private_pages_are_kept_out_of_core_dumps(self):
        driver = HostDriver()
        view = driver.reserve_view(2 * PAGE)
        view.map_private(PAGE, PAGE)
        view.map_private(0, PAGE)
        view.finish()
        fields = smaps_of(view.address)
        assert fields["Size"] == [str(2 * PAGE // 1024), "kB"]
        assert "dd" in fields["VmFlags"]
        assert view.num_maps == 1

    @pytest.mark.parametrize("huge_pages", [True, False])
    def test_bytes_are_the_same_with_and_without_huge_pages(self, huge_pages):
        source = pattern(3 * HUGE, seed=2)
        driver = HostDriver(huge_pages=huge_pages)
        view = driver.reserve_view(PAGE + source.nbytes)
        view.map_private(0, PAGE)
        view.map_block(PAGE, sealed_block(driver, source, view_offset=PAGE))
        view.finish()
        assert torch.equal(torch.from_dlpack(view.bytes_tensor())[PAGE:], source)


class TestThreads:
    def test_filling_lets_other_threads_run(self):
        source = pattern(PAGE).repeat(192 * 2**20 // PAGE)
        block = HostDriver(huge_pages=False).create_block(source.nbytes)
        times = []

        def fill():
            times.append(time.perf_counter())
            block.fill(0, source.data_ptr(), source.nbytes)
            times.append(time.perf_counter())

        thread = threading.Thread(target=fill)
        ticks = []
        thread.start()
        while thread.is_alive():
            ticks.append(time.perf_counter())
            time.sleep(0.0005)
        start, end = times
        middle = [tick for tick in ticks if start + 0.1 * (end - start) < tick < end]
        assert len(middle) >= 5, f"{len(middle)} ticks in {end - start:.3f} s"

    def test_threads_may_fill_one_block_together(self):
        source = pattern(8 * PAGE, seed=3)
        driver = HostDriver()
        block = driver.create_block(source.nbytes)
        threads = [
            threading.Thread(target=block.fill, args=(i * PAGE, source.data_ptr() + i * PAGE, PAGE))
            for i in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        block.seal()
        assert torch.equal(torch.from_dlpack(view_of(driver, block).bytes_tensor()), source)
