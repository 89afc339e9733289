# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""`vllm-dwdp plan --simulate`: the plan's load, simulated, beside what the plan expects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

from vllm_dwdp.cli.errors import CommandError, ExitCode
from vllm_dwdp.cli.plan_tables import Row, table
from vllm_dwdp.planning.errors import PlanError
from vllm_dwdp.planning.plan import Plan
from vllm_dwdp.planning.prompts import Prompts
from vllm_dwdp.planning.request import Request

if TYPE_CHECKING:
    from vllm_dwdp.simulation.outcome import Outcome
    from vllm_dwdp.simulation.planned_run import PlannedRun


def read_prompts(
    is_simulating: bool, seed: int | None, number: int | None, per_s: float | None
) -> Prompts | None:
    """The prompts to simulate; None without --simulate, where the other options must not stand."""
    if is_simulating:
        return Prompts(seed or 0, number, per_s)
    options = {"--seed": seed, "--num-prompts": number, "--arrivals-per-s": per_s}
    if given := [name for name, value in options.items() if value is not None]:
        raise PlanError(f"expected --simulate with {given[0]}, got {given[0]} alone.")
    return None


def run(request: Request, prompts: Prompts) -> PlannedRun:
    """Raises CommandError if a package of the simulator isn't installed."""
    try:
        from vllm_dwdp.simulation.planned_run import simulate_plan
    except ModuleNotFoundError as error:
        raise CommandError(
            f"--simulate needs the package {error.name}, which isn't installed: pip install "
            "'vllm-dwdp[plan]'.",
            ExitCode.FAILED,
        ) from error
    return simulate_plan(request, prompts)


def simulated_json(plan: Plan, found: PlannedRun) -> dict[str, Any]:
    """docs/planning.md explains each name."""
    return {
        "seed": found.prompts.seed,
        "num_prompts": found.dwdp.num_requests,
        "arrivals_per_s": found.prompts.per_s,
        "dwdp": _outcome(found.dwdp, plan.speed.dwdp),
        "expert_parallel": _outcome(found.expert_parallel, plan.speed.expert_parallel),
        "dwdp_over_expert_parallel": found.dwdp_over_expert_parallel,
        "expected_dwdp_over_expert_parallel": plan.speed.dep_over_dwdp,
    }


def simulated_table(plan: Plan, found: PlannedRun) -> Table:
    figures = simulated_json(plan, found)
    number, seed = figures["num_prompts"], figures["seed"]
    name = f"Simulated: {number} prompts, {_arrivals(found)}, seed {seed}"
    return table(name, ("what", "DWDP", "expert parallelism"), _rows(figures))


def _rows(found: dict[str, Any]) -> list[Row]:
    dwdp, other = found["dwdp"], found["expert_parallel"]

    def row(name: str, key: str, form: str, scale: float = 1.0) -> Row:
        return name, format(scale * dwdp[key], form), format(scale * other[key], form)

    ratios = found["dwdp_over_expert_parallel"], found["expected_dwdp_over_expert_parallel"]
    return [
        row("tokens/s and rank", "tokens_per_s_per_rank", ",.0f"),
        row("the plan expects", "expected_tokens_per_s_per_rank", ",.0f"),
        ("over expert parallelism", f"{ratios[0]:.2f}x", ""),
        ("the plan expects", f"{ratios[1]:.2f}x", ""),
        row("waiting, % of a step", "exposed_share", ".1f", 100),
        *(row(f"TTFT {name}, s", f"ttft_{name}_s", ".3f") for name in ("p50", "p90", "p99")),
    ]


def _outcome(outcome: Outcome, expected: float) -> dict[str, Any]:
    ttft = outcome.ttft_s
    assert ttft, "a simulation has at least one prompt, and serves all"
    return {
        "tokens_per_s_per_rank": outcome.tokens_per_s / len(outcome.ranks),
        "expected_tokens_per_s_per_rank": expected,
        "exposed_share": outcome.exposed_share,
        **{f"ttft_{name}_s": value for name, value in ttft._asdict().items()},
    }


def _arrivals(found: PlannedRun) -> str:
    per_s = found.prompts.per_s
    return "all at once" if per_s is None else f"{per_s:g} a second"
