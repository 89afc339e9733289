# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Measures this machine: the figures of a profile, with PyTorch. Takes some seconds.

On a host a rank is an equal part of its cores. All threads run on the cores of one memory node;
they read memory of that node, and then memory of another node, if there is one. On GPUs the figures
are those of device 0, and of copies to it from device 1.
"""

import contextlib
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from vllm_dwdp.planning.cores import memory_nodes, on_cores
from vllm_dwdp.planning.errors import PlanError
from vllm_dwdp.planning.hardware import Hardware, from_profile

SECONDS = 0.3
"""How long each figure is measured. The best of the runs in that time counts."""

HOST_BYTES, GPU_BYTES = 1 << 28, 1 << 30
"""Larger than caches."""

HOST_MATRIX, GPU_MATRIX = 1024, 8192
HEADS, HEAD_DIM, TOKENS = 8, 128, 2048
SOURCE = "measured by vllm-dwdp plan --calibrate"


@dataclass(frozen=True)
class Measured:
    """Figures of one rank. Rates in bytes or operations per second; memory in bytes."""

    kind: str
    name: str
    memory: float
    memory_rate: float
    link: float
    flops: float
    attention_flops: float
    domain: int

    def profile(self) -> dict[str, Any]:
        """As in configs/hardware. Kernels achieve what was measured, so most shares are 1."""
        figures = {
            "memory_gb": self.memory / 1e9,
            "memory_gb_per_s": self.memory_rate / 1e9,
            "link_gb_per_s": self.link / 1e9,
            "domain": self.domain,
        }
        shares = dict.fromkeys(("dense", "grouped", "memory", "copy", "exchange"), 1.0)
        return {
            "name": self.name,
            "kind": self.kind,
            **{key: _figure(value) for key, value in figures.items()},
            "tflops": {"bf16": _figure(self.flops / 1e12)},
            "achieved_shares": {"attention": self.attention_flops / self.flops, **shares},
        }

    def hardware(self) -> Hardware:
        return from_profile(self.profile(), Path("calibration"))


def calibrate(num_ranks: int) -> Measured:
    """Measure this machine, of which a group of `num_ranks` uses equal parts."""
    return _gpu(num_ranks) if torch.cuda.is_available() else _host(num_ranks)


def write_profile(measured: Measured, path: Path) -> None:
    """Raises PlanError if the file can't be written."""
    try:
        path.write_text(yaml.safe_dump(measured.profile(), sort_keys=False), encoding="utf-8")
    except OSError as error:
        raise PlanError(f"expected to write a profile to {path}: {error}.") from error


def _figure(value: float) -> dict[str, Any]:
    return {"value": value if isinstance(value, int) else round(value, 4), "source": SOURCE}


def _host(num_ranks: int) -> Measured:
    nodes = memory_nodes()
    cores = sorted(nodes[0])
    threads = max(1, sum(map(len, nodes)) // num_ranks)
    with on_cores(cores[:threads]), _threads(min(threads, len(cores))):
        own = torch.ones(HOST_BYTES, dtype=torch.uint8).view(torch.int64)
        read = HOST_BYTES / _best(lambda: own.sum())
        matrix = torch.randn(HOST_MATRIX, HOST_MATRIX, dtype=torch.bfloat16)
        flops = 2 * HOST_MATRIX**3 / _best(lambda: matrix @ matrix)
        attention = _attention_flops("cpu", TOKENS // 2)
    return Measured(
        kind="cpu",
        name=platform.node() or "this-host",
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / num_ranks,
        memory_rate=read,
        link=_between_nodes(nodes, threads) or read,
        flops=flops,
        attention_flops=attention,
        domain=max(num_ranks, sum(map(len, nodes))),
    )


def _between_nodes(nodes: list[set[int]], threads: int) -> float | None:
    """Bytes per second that cores of the first node read of the second node's memory."""
    if len(nodes) < 2:
        return None
    with on_cores(sorted(nodes[1])):
        far = torch.ones(HOST_BYTES, dtype=torch.uint8).view(torch.int64)
    with on_cores(sorted(nodes[0])[:threads]), _threads(min(threads, len(nodes[0]))):
        return HOST_BYTES / _best(lambda: far.sum())


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _gpu(num_ranks: int) -> Measured:
    own = torch.ones(GPU_BYTES, dtype=torch.uint8, device="cuda:0").view(torch.int64)
    read = GPU_BYTES / _best(lambda: own.sum())
    matrix = torch.randn(GPU_MATRIX, GPU_MATRIX, dtype=torch.bfloat16, device="cuda:0")
    return Measured(
        kind="gpu",
        name=torch.cuda.get_device_name(0),
        memory=torch.cuda.get_device_properties(0).total_memory,
        memory_rate=read,
        link=_between_gpus(own),
        flops=2 * GPU_MATRIX**3 / _best(lambda: matrix @ matrix),
        attention_flops=_attention_flops("cuda:0", 4 * TOKENS),
        domain=max(num_ranks, torch.cuda.device_count()),
    )


def _between_gpus(own: torch.Tensor) -> float:
    """Raises PlanError on a machine with one GPU, whose link to others can't be measured."""
    if torch.cuda.device_count() < 2:
        raise PlanError(
            "expected two GPUs to measure the link between them, got one; plan with --hardware and "
            "a profile of configs/hardware."
        )
    far = own.to("cuda:1")
    return GPU_BYTES / _best(lambda: own.copy_(far))


def _attention_flops(device: str, tokens: int) -> float:
    """Operations per second of causal attention over one prompt of `tokens` tokens."""
    q = torch.randn(1, HEADS, tokens, HEAD_DIM, dtype=torch.bfloat16, device=device)
    attend = torch.nn.functional.scaled_dot_product_attention
    flop = 2 * HEADS * tokens**2 / 2 * 2 * HEAD_DIM
    return flop / _best(lambda: attend(q, q, q, is_causal=True))


def _best(run: Callable[[], object]) -> float:
    """Seconds of the fastest run, after one to warm up."""
    run()
    ends, best = time.perf_counter() + SECONDS, float("inf")
    while time.perf_counter() < ends:
        best = min(best, _timed(run))
    return best


def _timed(run: Callable[[], object]) -> float:
    _synchronise()
    start = time.perf_counter()
    run()
    _synchronise()
    return time.perf_counter() - start


def _synchronise() -> None:
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            torch.cuda.synchronize(index)
