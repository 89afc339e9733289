# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Makes a plan out of a request: all figures, the verdict, and the command."""

from dataclasses import dataclass

from vllm_dwdp.planning.break_even import Window, break_even_tokens, recommended_tokens, window
from vllm_dwdp.planning.decode import decode_ms, expert_parallel_decode_ms
from vllm_dwdp.planning.flags import recommended_flags
from vllm_dwdp.planning.implementation import PUBLISHED, VLLM_DWDP
from vllm_dwdp.planning.memory import RankMemory, rank_memory
from vllm_dwdp.planning.peak_roofline import PeakRoofline, peak_roofline
from vllm_dwdp.planning.rates import Rates
from vllm_dwdp.planning.request import Request
from vllm_dwdp.planning.spread import Spread, spread_experts
from vllm_dwdp.planning.sweep import SweepRow, over_lengths, over_sizes
from vllm_dwdp.planning.throughput import Throughput, throughput
from vllm_dwdp.planning.verdict import Answer, Evidence, Verdict, judge


@dataclass(frozen=True)
class _Facts:
    """What the verdict follows from.

    speed: of this project. recommended: tokens per rank and step. decode, expert_parallel_decode:
    milliseconds by sequences on a rank. replica_memory: of a rank that has all experts.
    """

    memory: RankMemory
    replica_memory: RankMemory
    speed: Throughput
    recommended: int | None
    decode: dict[int, float]
    expert_parallel_decode: dict[int, float]


@dataclass(frozen=True)
class Plan(_Facts):
    """Everything that the command shows.

    peak: the paper's roofline. expected: a layer's window and fetch at achieved rates.
    published_speed: of the implementation that the paper measured. break_even: tokens per rank and
    step.
    """

    request: Request
    spread: Spread
    peak: PeakRoofline
    expected: Window
    published_speed: Throughput
    break_even: int | None
    by_length: list[SweepRow]
    by_size: list[SweepRow]
    verdict: Verdict
    flags: str

    @property
    def replicas_fit(self) -> bool:
        return _replicas_fit(self.request, self.replica_memory)


def make_plan(request: Request, place: str) -> Plan:
    """place: the model as the user named it, for the command. Raises PlanError for bad input."""
    model, ranks, work = request.model, request.dwdp_size, request.work()
    spread = spread_experts(model, ranks, request.num_experts_per_worker)
    rates = Rates.achieved(request.hardware, ranks)
    facts = _Facts(
        memory=_memory(request, spread),
        replica_memory=_memory(request, spread_experts(model, 1)),
        speed=throughput(model, rates, work, spread, VLLM_DWDP, job=request.job),
        recommended=_recommended(request, rates, spread),
        decode=decode_ms(model, rates, spread, context=work.mean_length),
        expert_parallel_decode=expert_parallel_decode_ms(
            model, rates, ranks, context=work.mean_length
        ),
    )
    verdict = judge(_evidence(request, facts))
    return Plan(
        **vars(facts),
        request=request,
        spread=spread,
        peak=peak_roofline(model, request.hardware, request.work(is_balanced=True), spread),
        expected=window(model, rates, work, spread),
        published_speed=_published(request, rates, spread),
        break_even=_break_even(request, rates, spread),
        by_length=over_lengths(request),
        by_size=over_sizes(request),
        verdict=verdict,
        flags=_flags(request, place, verdict.answer, facts.recommended, rates),
    )


def _evidence(request: Request, facts: _Facts) -> Evidence:
    ours, others = facts.decode, facts.expert_parallel_decode
    return Evidence(
        speed=facts.speed,
        decode_cost=max(ours[batch] / others[batch] for batch in ours),
        fits=facts.memory.kv_tokens >= request.isl,
        replicas_fit=_replicas_fit(request, facts.replica_memory),
        tokens=request.work().tokens,
        recommended=facts.recommended,
    )


def _replicas_fit(request: Request, memory: RankMemory) -> bool:
    """Whether a rank has room for the whole model and the KV cache of a step."""
    return memory.kv_tokens >= request.max_tokens


def _break_even(request: Request, rates: Rates, spread: Spread) -> int | None:
    isl, ratio = request.isl, request.length_ratio
    return break_even_tokens(request.model, rates, spread, isl=isl, length_ratio=ratio)


def _recommended(request: Request, rates: Rates, spread: Spread) -> int | None:
    isl, ratio = request.isl, request.length_ratio
    return recommended_tokens(request.model, rates, spread, VLLM_DWDP, isl=isl, length_ratio=ratio)


def _memory(request: Request, spread: Spread) -> RankMemory:
    rates = Rates.achieved(request.hardware, spread.num_ranks)
    return rank_memory(
        request.model,
        request.hardware,
        spread,
        max_tokens=request.max_tokens,
        has_slots=not rates.reads_in_place,
    )


def _published(request: Request, rates: Rates, spread: Spread) -> Throughput:
    work = request.work(is_chunked=PUBLISHED.chunks_prompts)
    return throughput(request.model, rates, work, spread, PUBLISHED)


def _flags(
    request: Request, place: str, answer: Answer, recommended: int | None, rates: Rates
) -> str:
    if answer is Answer.NO:
        return ""
    tokens = max(request.max_tokens, recommended or 0)
    copies = not rates.reads_in_place
    return recommended_flags(request, place, tokens=tokens, answer=answer, copies=copies)
