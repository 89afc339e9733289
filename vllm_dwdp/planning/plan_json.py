# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A plan as JSON: the names that scripts rely on."""

import math
from typing import Any

from vllm_dwdp.planning.contention import Contention
from vllm_dwdp.planning.plan import Plan
from vllm_dwdp.planning.sweep import SweepRow
from vllm_dwdp.planning.throughput import Throughput


def plan_json(plan: Plan) -> dict[str, Any]:
    """docs/planning.md explains each name. Infinite ratios, where nothing is fetched, are null."""
    return {
        **_inputs(plan),
        **_rooflines(plan),
        **_memory(plan),
        "decode_ms_per_step": plan.decode,
        "expert_parallel_decode_ms_per_step": plan.expert_parallel_decode,
        "throughput": _speed(plan.speed),
        "by_isl": [_row(row) for row in plan.by_length],
        "by_dwdp_size": [_row(row) for row in plan.by_size],
        "verdict": plan.verdict.answer,
        "reasons": list(plan.verdict.reasons),
        "flags": plan.flags,
    }


def contention_json(found: Contention) -> dict[str, Any]:
    return {
        "dwdp_size": found.dwdp_size,
        "percentages": list(found.percentages),
        "percent_by_rivals": {str(k): percent for k, percent in enumerate(found.percentages)},
        "mean_rivals": found.mean_rivals,
    }


def _inputs(plan: Plan) -> dict[str, Any]:
    request = plan.request
    return {
        "model": request.model.name,
        "hardware": request.hardware.name,
        "dwdp_size": request.dwdp_size,
        "isl": request.isl,
        "length_ratio": request.length_ratio,
        "tokens_per_step": request.work().tokens,
        "expert_format": request.model.formats.experts.name,
    }


def _rooflines(plan: Plan) -> dict[str, Any]:
    published = plan.published_speed
    return {
        "window_over_fetch": _finite(plan.peak.window_over_fetch),
        "dep_over_dwdp": plan.peak.dep_over_dwdp,
        "window_s_per_layer": plan.expected.compute,
        "fetch_s_per_layer": plan.expected.fetch,
        "expected_window_over_fetch": _finite(plan.expected.over_fetch),
        "expected_dep_over_dwdp": plan.speed.dep_over_dwdp,
        "context_only_speedup": {
            "tps_per_gpu": published.dep_over_dwdp,
            "ttft": published.dep_over_dwdp,
        },
        "break_even_tokens": plan.break_even,
        "recommended_tokens": plan.recommended,
        "fetch_bytes_per_layer": plan.spread.fetch_bytes,
        "fetch_bytes_per_step": plan.spread.fetch_bytes * plan.request.model.num_moe_layers,
    }


def _memory(plan: Plan) -> dict[str, Any]:
    return {
        "resident_expert_bytes": plan.memory.resident_experts,
        "slot_bytes": plan.memory.slots,
        "rest_bytes": plan.memory.rest,
        "activation_bytes": plan.memory.activations,
        "memory_budget_bytes": plan.memory.budget,
        "kv_tokens": plan.memory.kv_tokens,
        "replica_kv_tokens": plan.replica_memory.kv_tokens,
    }


def _row(row: SweepRow) -> dict[str, Any]:
    return {"dwdp_size": row.dwdp_size, "isl": row.isl, **_speed(row.speed)}


def _speed(speed: Throughput) -> dict[str, float]:
    """Prompt tokens per second and rank."""
    return {
        "dwdp": speed.dwdp,
        "expert_parallel": speed.expert_parallel,
        "tensor_parallel": speed.tensor_parallel,
        "replicas": speed.replicas,
        "dwdp_over_expert_parallel": speed.dep_over_dwdp,
        "dwdp_over_tensor_parallel": speed.dwdp / speed.tensor_parallel,
        "dwdp_over_replicas": speed.dwdp / speed.replicas,
    }


def _finite(ratio: float) -> float | None:
    return ratio if math.isfinite(ratio) else None
