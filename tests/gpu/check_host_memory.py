# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Host memory as a place for experts: what the driver allows, and what copies and reads of it cost.

dwdp keeps no experts there yet. Asked by cuda-bindings: memory of a host NUMA node, exported and
imported by descriptor, in one read-only view with the GPU's own.
"""

import functools

import torch
import triton
import triton.language as tl
from figures import say
from gpu import median_seconds, seconds
from parts import Need, part, run_parts

NEEDS = (Need.TORCH, Need.TRITON, Need.BINDINGS)
BLOCK_BYTES = 512 << 20
NUM_COPIES = 8
WORDS = tl.constexpr(4096)


@triton.jit
def _copy(source, destination, num_words):
    """Of int64, by a kernel."""
    places = tl.program_id(0) * WORDS + tl.arange(0, WORDS)
    read = tl.load(source.to(tl.pointer_type(tl.int64)) + places, places < num_words)
    tl.store(destination.to(tl.pointer_type(tl.int64)) + places, read, places < num_words)


def read_by_kernel(address, target):
    """target: uint8, on the GPU."""
    num_words = target.numel() // 8
    _copy[(triton.cdiv(num_words, WORDS.value),)](address, target.data_ptr(), num_words)


@functools.cache
def blocks():
    """(host memory, imported; the GPU's own; random bytes that both hold)."""
    from host_memory import HostBlock, host_node

    torch.cuda.init()
    torch.manual_seed(0)
    marks = torch.randint(0, 256, (BLOCK_BYTES,), dtype=torch.uint8, device="cuda")
    host = HostBlock.on_host(BLOCK_BYTES, host_node()).filled_from(marks)
    own = HostBlock.on_gpu(BLOCK_BYTES).filled_from(marks)
    return host.imported(), own, marks


@part("memory of a host NUMA node", *NEEDS)
def allowed(device):
    from host_memory import HostBlock, Mapped, host_node, is_supported

    del device
    torch.cuda.init()
    say("memory of a host NUMA node", is_supported=is_supported(), node=host_node())
    host, own, marks = blocks()
    say("its pages", **HostBlock.page_sizes(host_node()))
    view = Mapped([host, own], read_only=True)
    found = torch.empty_like(marks)
    for index, name in enumerate(("host", "GPU")):
        found.zero_()
        read_by_kernel(view.address + index * BLOCK_BYTES, found)
        assert torch.equal(found, marks), name
    say("one read-only view of imported host memory and the GPU's own", answer="read as written")


@part("copies and reads of host memory", *NEEDS)
def speeds(device):
    from host_memory import Mapped

    del device
    host, own, marks = blocks()
    found = torch.empty_like(marks)
    pinned = torch.empty(BLOCK_BYTES, dtype=torch.uint8).pin_memory()
    host_view, own_view = (Mapped([one], read_only=True) for one in (host, own))
    works = {
        "copy_of_host_node": lambda: host_view.copy_to(found),
        "copy_of_pinned_memory": lambda: found.copy_(pinned, non_blocking=True),
        "copy_of_own_memory": lambda: own_view.copy_to(found),
        "kernel_reads_host_node": lambda: read_by_kernel(host_view.address, found),
        "kernel_reads_own_memory": lambda: read_by_kernel(own_view.address, found),
    }
    times = median_seconds(list(works.values()), repeats=10)
    rates = {
        f"{n}_gb_per_s": round(BLOCK_BYTES / t / 1e9, 1) for n, t in zip(works, times, strict=True)
    }
    say("copies and reads of host memory", **rates)


@part("copies of host memory beside compute", *NEEDS)
def overlap(device):
    """Over the slower of both alone, with products that take twice, as long, half as long."""
    from host_memory import Mapped

    del device
    host, _, marks = blocks()
    view = Mapped([host], read_only=True)
    target = torch.empty_like(marks)
    a = torch.randn(4096, 4096, device="cuda").bfloat16()
    copying = torch.cuda.Stream(priority=-1)

    def copy_all():
        with torch.cuda.stream(copying):
            for _ in range(NUM_COPIES):
                view.copy_to(target)

    def compute(products):
        for _ in range(products):
            a @ a

    def both(products):
        copying.wait_stream(torch.cuda.current_stream())
        copy_all()
        compute(products)
        torch.cuda.current_stream().wait_stream(copying)

    copied = median_seconds([lambda: both(0)], repeats=3)[0]
    product = seconds(lambda: compute(50)) / 50
    for share in (2.0, 1.0, 0.5):
        products = round(share * copied / product)
        works = [functools.partial(both, products), functools.partial(compute, products)]
        beside, computed = median_seconds(works, repeats=3)
        say(
            f"copies of host memory beside compute of {share:g} times as long",
            ratio=round(beside / max(copied, computed), 3),
            compute_ms=round(computed * 1e3, 1),
            copy_ms=round(copied * 1e3, 1),
            expected={"ratio": (0.9, 1.1)},
        )


if __name__ == "__main__":
    run_parts(allowed, speeds, overlap)
