# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The figure of a plan: computation over fetch, by tokens in a step."""

from pathlib import Path

from matplotlib.figure import Figure

from vllm_dwdp.cli.figures import save
from vllm_dwdp.planning.break_even import break_even_tokens
from vllm_dwdp.planning.errors import PlanError
from vllm_dwdp.planning.rates import Rates
from vllm_dwdp.planning.request import Request
from vllm_dwdp.planning.spread import spread_experts
from vllm_dwdp.planning.sweep import over_tokens


def draw(request: Request, path: Path) -> None:
    """Raises PlanError where nothing is fetched, and CommandError if the file can't be written."""
    break_even = _break_even(request)
    if not break_even:
        raise PlanError("expected experts to fetch for --figure, but nothing is copied here.")
    save(_figure(request, break_even), path)


def _figure(request: Request, break_even: int) -> Figure:
    points = over_tokens(request)
    tokens = [point.tokens for point in points]
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(tokens, [p.expected for p in points], label="expected")
    axes.plot(tokens, [p.peak for p in points], linestyle="--", label="at peak rates")
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.axvline(break_even, color="grey", linestyle=":")
    axes.annotate(f" break-even {break_even:,}", (break_even, axes.get_ylim()[1] * 0.5))
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel("tokens in a step of a rank")
    axes.set_ylabel("computation over fetch, one layer")
    axes.set_title(
        f"{request.model.name} on {request.hardware.name}, {request.dwdp_size} ranks, prompts of "
        f"{request.isl} tokens",
        fontsize="medium",
    )
    axes.legend()
    return figure


def _break_even(request: Request) -> int | None:
    return break_even_tokens(
        request.model,
        Rates.achieved(request.hardware, request.dwdp_size),
        spread_experts(request.model, request.dwdp_size, request.num_experts_per_worker),
        isl=request.isl,
        length_ratio=request.length_ratio,
    )
