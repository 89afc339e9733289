# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Compares deployments that serve a model: starts them, measures them in rounds, sums up."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vllm_dwdp.bench.arms import recipes
from vllm_dwdp.bench.client import ClientOptions, Clients
from vllm_dwdp.bench.disturbance.disturber import Disturber
from vllm_dwdp.bench.load import Load
from vllm_dwdp.bench.parts import Parts
from vllm_dwdp.bench.rounds import Measurements, Reporter, Rounds
from vllm_dwdp.bench.serve_command import ServeOptions
from vllm_dwdp.bench.stage import ArmMaker, InTurns, Together
from vllm_dwdp.bench.summary import to_json


@dataclass(frozen=True)
class Comparison:
    """What to compare.

    parts: of the machine, one for each rank. arms: names, see arms.WHAT_ARMS_ARE. options: for
    every `vllm serve`. together: keep all arms in memory. disturber: measure each arm once more
    while this runs. logs: a folder for the logs of servers and clients.
    """

    model: str
    parts: Parts
    arms: Sequence[str]
    load: Load
    num_rounds: int
    seed: int
    options: tuple[str, ...]
    together: bool
    disturber: Disturber | None
    logs: Path

    def serve_options(self) -> ServeOptions:
        """Raises BenchError for options that bench sets itself."""
        small_cache = self.together or self.parts.holds_all_arms
        return ServeOptions(self.model, self.load, self.options, small_cache)


@dataclass(frozen=True)
class Result:
    """What a comparison found. failures: by the name of an arm that failed, why."""

    comparison: Comparison
    commands: dict[str, list[str]]
    client_command: str
    measurements: Measurements
    variants: list[str]
    failures: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        comparison = self.comparison
        disturber = comparison.disturber
        return {
            "model": comparison.model,
            "ranks": len(comparison.parts),
            "on": comparison.parts.kind,
            "load_of_a_client": asdict(comparison.load),
            "rounds": comparison.num_rounds,
            "seed": comparison.seed,
            "together": comparison.together,
            "disturbance": disturber and disturber.name,
            "commands": self.commands,
            "client_command": self.client_command,
            "failures": self.failures,
            **to_json(self.measurements, self.variants),
        }


def bench_serve(comparison: Comparison, reporter: Reporter) -> Result:
    """Measure all arms. Raises BenchError for options that bench sets itself."""
    options = comparison.serve_options()
    clients = ClientOptions(comparison.model, comparison.load, tuple(options.of_clients()))
    servers = recipes(comparison.arms, comparison.parts)
    maker = ArmMaker(options, servers, comparison.logs)
    commands = {name: maker.commands(name) for name in servers}
    client_command = clients.printed(maker.first_url(), comparison.seed)
    reporter.begin(commands, client_command)
    with ExitStack() as stack:
        rounds = Rounds(
            stack.enter_context(Clients(comparison.logs / "clients.log")),
            clients,
            num_clients=len(comparison.parts),
            disturber=comparison.disturber,
            reporter=reporter,
            first_seed=comparison.seed,
        )
        make = Together if comparison.together else InTurns
        stage = stack.enter_context(make(maker, rounds.warm_up))
        rounds.run(stage, comparison.num_rounds)
    found, variants = rounds.found, rounds.variants
    return Result(comparison, commands, client_command, found, variants, stage.failures)
