# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Python interface of the fake CUDA driver (tests/fake_cuda)."""

import contextlib
import ctypes
import os
from pathlib import Path

import torch

from vllm_dwdp._core import ChosenExperts, CudaDriver

LIBRARY = Path(__file__).parents[2] / "build" / "csrc-tests" / "libfake_cuda.so"
INVALID_VALUE, OUT_OF_MEMORY, NOT_PERMITTED, NOT_SUPPORTED = 1, 2, 800, 801
INVALID_DEVICE, ILLEGAL_ADDRESS = 101, 700
VIRTUAL_MEMORY, POSIX_DESCRIPTORS, FABRIC, HOST_VIRTUAL_MEMORY = 102, 103, 128, 141
"""Device attributes, CU_DEVICE_ATTRIBUTE_*."""


class FakeCuda:
    """Controls the fake driver of this process; all instances control the same driver."""

    def __init__(self):
        assert LIBRARY.exists(), f"no {LIBRARY}; run 'bash tests/run.sh', which builds it"
        self._library = ctypes.CDLL(str(LIBRARY))
        for name in ("violations", "leaks"):
            getattr(self._library, f"fake_cuda_{name}").restype = ctypes.c_char_p
        for name in ("make_stream", "end_capture"):
            getattr(self._library, f"fake_cuda_{name}").restype = ctypes.c_void_p

    def reset(self, seed=0, granularity=4096):
        self._library.fake_cuda_reset(ctypes.c_uint64(seed))
        self._library.fake_cuda_set_granularity(ctypes.c_size_t(granularity))

    def driver(self, gpu=0):
        """dwdp's driver of one of the two fake GPUs, which ranks take in turns."""
        return CudaDriver(gpu % 2, library=str(LIBRARY))

    def make_chosen(self, copier, num_ranks):
        return lambda experts: ChosenExperts(copier, experts, num_ranks)

    def run_at_once(self):
        self._library.fake_cuda_run_at_once(True)

    def set_recommended_granularity(self, num_bytes):
        self._library.fake_cuda_set_recommended_granularity(ctypes.c_size_t(num_bytes))

    def set_capacity(self, num_bytes, gpu=0):
        """Set the bytes that the GPU of `driver(gpu)` can still allocate."""
        self._library.fake_cuda_set_capacity(gpu % 2, ctypes.c_size_t(num_bytes))

    def set_host_capacity(self, num_bytes):
        """Set the bytes of host memory that GPUs can still allocate."""
        self._library.fake_cuda_set_capacity(2, ctypes.c_size_t(num_bytes))

    def deny_peer_access(self, reader, owner):
        self._library.fake_cuda_deny_peer_access(reader % 2, owner % 2)

    def refuse_mixed_access(self):
        self._library.fake_cuda_refuse_mixed_access()

    def refuse_downgraded_access(self):
        self._library.fake_cuda_refuse_downgraded_access()

    def break_context(self, gpu=0, result=ILLEGAL_ADDRESS):
        """Break the context of `driver(gpu)` until the next reset, as a failing kernel does."""
        self._library.fake_cuda_break(gpu % 2, result)

    def hang(self, name, nth=1):
        """Make the nth copy or kernel of that name hang; a copy has the name of its driver call."""
        self._library.fake_cuda_hang(name.encode(), nth)

    def end_hangs(self):
        self._library.fake_cuda_end_hangs()

    @property
    def num_exportable(self):
        """The number of allocations that could be exported to other processes."""
        return self._library.fake_cuda_num_exportable()

    def set_version(self, version):
        self._library.fake_cuda_set_version(version)

    def set_attribute(self, attribute, value):
        self._library.fake_cuda_set_attribute(attribute, value)

    def fail(self, symbol, nth=1, result=INVALID_VALUE):
        self._library.fake_cuda_fail(symbol.encode(), nth, result)

    def delay(self, symbol, milliseconds):
        """Have each call of the symbol take so long."""
        self._library.fake_cuda_delay(symbol.encode(), milliseconds)

    def calls(self, symbol):
        return self._library.fake_cuda_calls(symbol.encode())

    @property
    def violations(self):
        return self._library.fake_cuda_violations().decode().splitlines()

    @property
    def leaks(self):
        return self._library.fake_cuda_leaks().decode().splitlines()

    def make_stream(self, gpu=0):
        """Make a stream on the GPU of `driver(gpu)`; returns its handle."""
        return self._library.fake_cuda_make_stream(gpu % 2)

    def destroy_stream(self, stream):
        self._library.fake_cuda_destroy_stream(ctypes.c_void_p(stream))

    def synchronize(self, stream):
        assert self._library.fake_cuda_synchronize(ctypes.c_void_p(stream)) == 0

    def on(self, stream):
        """Does nothing: the fake driver's kernels get their stream as an argument."""
        return contextlib.nullcontext()

    def read(self, stream, view, num_bytes):
        """Read the start of a view with a kernel; the result is filled once the kernel has run."""
        found = torch.zeros(num_bytes, dtype=torch.uint8)
        assert self.read_address(stream, view.address, found) == 0
        return found

    def read_address(self, stream, address, into):
        """Read device memory into a CPU tensor with a kernel; returns 0 or CUDA's error."""
        return self._library.fake_cuda_read(
            ctypes.c_void_p(stream),
            ctypes.c_uint64(address),
            ctypes.c_size_t(into.nbytes),
            ctypes.c_void_p(into.data_ptr()),
        )

    def fill(self, stream, address, num_bytes, value):
        """Write device memory with a kernel; returns 0 or CUDA's error."""
        return self._library.fake_cuda_fill(
            ctypes.c_void_p(stream),
            ctypes.c_uint64(address),
            ctypes.c_size_t(num_bytes),
            ctypes.c_ubyte(value),
        )

    def begin_capture(self, stream, mode=0):
        """mode: CUstreamCaptureMode; 0 is CU_STREAM_CAPTURE_MODE_GLOBAL."""
        return self._library.fake_cuda_begin_capture(ctypes.c_void_p(stream), mode)

    def end_capture(self, stream):
        """The captured graph, or None if the capture was broken."""
        return self._library.fake_cuda_end_capture(ctypes.c_void_p(stream))

    def launch(self, graph, stream):
        return self._library.fake_cuda_launch(ctypes.c_void_p(graph), ctypes.c_void_p(stream))

    def destroy_graph(self, graph):
        self._library.fake_cuda_destroy_graph(ctypes.c_void_p(graph))


def bytes_of(view):
    """The bytes of a view, uint8 [num_bytes]; the CPU can read the fake GPU's memory."""
    place = (ctypes.c_uint8 * view.num_bytes).from_address(view.address)
    place.view = view  # keeps the view mapped while a tensor lives
    return torch.frombuffer(place, dtype=torch.uint8)


def num_memory_files():
    """The number of open descriptors of device memory in this process."""
    links = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    return sum("fake-cuda-" in os.readlink(link) for link in links if os.path.lexists(link))
