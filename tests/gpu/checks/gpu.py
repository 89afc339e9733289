# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Real GPUs with the interface of the fake driver (FakeCuda): streams, kernels that read views."""

import shutil
import statistics

import packed_vllm
import torch
import triton
import triton.language as tl
from parts import Need

from vllm_dwdp._core import CudaDriver
from vllm_dwdp.device.gather import GatheredExperts, make_totals
from vllm_dwdp.device.waits import GpuWaits

READ_BLOCK = tl.constexpr(4096)


class Gpu:
    """num_gpus: the number of GPUs that ranks take in turns; 1 if all ranks are in one process."""

    violations = ()
    leaks = ()
    make_waits = GpuWaits
    job = {"device": "gpu"}  # noqa: RUF012
    """Keys of the job of a rank's process; see tests/cuda/gpu_process.py."""

    num_submissions, num_largest = 10_000, 64
    """See submissions.py. One driver crashed after 51,828 copies; these are more."""

    def __init__(self, num_gpus=1):
        self._num_gpus = num_gpus
        self._streams = {}

    @property
    def offers(self):
        found = {Need.TORCH, Need.GRAPHS, Need.TRITON}
        if packed_vllm.is_at_hand():
            found.add(Need.VLLM)
        if shutil.which("compute-sanitizer"):
            found.add(Need.SANITIZER)
        if torch.cuda.device_count() > 1:
            found.add(Need.TWO_GPUS)
        return found

    def driver(self, gpu=0):
        gpu %= self._num_gpus
        torch.cuda.set_device(gpu)
        torch.cuda.init()
        return CudaDriver(gpu)

    def zeros(self, num_bytes):
        return torch.zeros(num_bytes, dtype=torch.uint8, device="cuda")

    def make_chosen(self, copier, num_ranks):
        totals = make_totals(num_ranks, "cuda")
        return lambda experts: GatheredExperts(experts, totals)

    def make_stream(self, gpu=0):
        stream = torch.cuda.Stream(gpu % self._num_gpus)
        self._streams[stream.cuda_stream] = stream
        return stream.cuda_stream

    def stream(self, handle):
        return self._streams[handle]

    def destroy_stream(self, handle):
        self._streams.pop(handle).synchronize()

    def synchronize(self, handle):
        self._streams[handle].synchronize()

    def synchronize_all(self):
        torch.cuda.synchronize()

    def on(self, handle):
        return torch.cuda.stream(self._streams[handle])

    def read(self, handle, view, num_bytes):
        """uint8 [num_bytes] on the GPU; a kernel in the current stream reads it from a view."""
        found = torch.empty(num_bytes, dtype=torch.uint8, device="cuda")
        source = self.bytes_of(view)
        _read[(triton.cdiv(num_bytes, READ_BLOCK.value),)](source, found, num_bytes)
        return found

    def bytes_of(self, view):
        """The bytes of a view as a tensor on the GPU, uint8 [num_bytes]."""
        return torch.from_dlpack(view.bytes_tensor())

    def calls(self, symbol):
        return 0


@triton.jit
def _read(source, found, num_bytes):
    """A Triton kernel, as vLLM's MoE kernels; Triton inspects the pointers that it gets."""
    places = tl.program_id(0) * READ_BLOCK + tl.arange(0, READ_BLOCK)
    tl.store(found + places, tl.load(source + places, mask=places < num_bytes), places < num_bytes)


def seconds(work, before=None):
    """GPU time of `work` in the current stream; the GPU is idle when it starts.

    before: called before, not timed.
    """
    if before is not None:
        before()
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def median_seconds(works, *, repeats=20, before=None):
    """Median GPU time of each of `works`, which run in turns; the first round isn't counted."""
    rounds = [[seconds(work, before) for work in works] for _ in range(repeats + 1)][1:]
    return [statistics.median(times) for times in zip(*rounds, strict=True)]
