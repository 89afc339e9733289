# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Throughput over lengths of prompts and over numbers of ranks, and windows over sizes of steps."""

import dataclasses
from dataclasses import dataclass

from vllm_dwdp.planning import constants
from vllm_dwdp.planning.break_even import window
from vllm_dwdp.planning.implementation import VLLM_DWDP
from vllm_dwdp.planning.peak_roofline import peak_roofline
from vllm_dwdp.planning.rates import Rates
from vllm_dwdp.planning.request import Request
from vllm_dwdp.planning.spread import spread_experts
from vllm_dwdp.planning.throughput import Throughput, throughput
from vllm_dwdp.planning.workload import Workload


@dataclass(frozen=True)
class SweepRow:
    dwdp_size: int
    isl: int
    speed: Throughput


@dataclass(frozen=True)
class WindowPoint:
    """Window over fetch for one size of step: what to expect, and at peak rates."""

    tokens: int
    expected: float
    peak: float


def over_lengths(request: Request) -> list[SweepRow]:
    """The asked-for ranks and tokens per step, with other lengths of prompts."""
    asked = dataclasses.replace(request, batch_size=None, max_num_batched_tokens=request.max_tokens)
    return [_row(dataclasses.replace(asked, isl=isl)) for isl in constants.SWEEP_ISL]


def over_sizes(request: Request) -> list[SweepRow]:
    """The asked-for step, with other numbers of ranks, as far as hardware and experts allow."""
    most = min(request.hardware.domain, request.model.num_experts)
    sizes = sorted({*constants.SWEEP_SIZES, request.dwdp_size})
    asked = dataclasses.replace(request, num_experts_per_worker=None)
    return [_row(dataclasses.replace(asked, dwdp_size=n)) for n in sizes if n <= most]


def over_tokens(request: Request) -> list[WindowPoint]:
    """Sizes of steps from 512 to 131072 tokens, in factors of the square root of two."""
    sizes = [round(512 * 2 ** (i / 2)) for i in range(17)]
    return [_point(request, tokens) for tokens in sizes]


def _row(request: Request) -> SweepRow:
    spread = spread_experts(request.model, request.dwdp_size, request.num_experts_per_worker)
    rates = Rates.achieved(request.hardware, request.dwdp_size)
    work = request.work()
    speed = throughput(request.model, rates, work, spread, VLLM_DWDP, job=request.job)
    return SweepRow(request.dwdp_size, request.isl, speed)


def _point(request: Request, tokens: int) -> WindowPoint:
    spread = spread_experts(request.model, request.dwdp_size, request.num_experts_per_worker)
    rates = Rates.achieved(request.hardware, request.dwdp_size)
    work = Workload(tokens, request.isl, request.length_ratio)
    even = Workload(tokens, request.isl)
    peak = peak_roofline(request.model, request.hardware, even, spread)
    expected = window(request.model, rates, work, spread)
    return WindowPoint(tokens, expected.over_fetch, peak.window_over_fetch)
