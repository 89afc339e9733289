# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Compares deployments that serve a model: starts them, measures them in rounds, sums up."""

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from vllm_dwdp.bench.client import ClientOptions, Clients
from vllm_dwdp.bench.disturbance.disturber import Disturber
from vllm_dwdp.bench.load import Load
from vllm_dwdp.bench.recipe import Parts, recipes
from vllm_dwdp.bench.rounds import Measurement, Measurements, Rounds
from vllm_dwdp.bench.serve_command import Common, free_ports
from vllm_dwdp.bench.stage import ArmMaker, InTurns, Together
from vllm_dwdp.bench.summary import to_json


@dataclass(frozen=True)
class Request:
    """What to compare.

    parts: of the machine, one for each rank. arms: names, see recipe.WHAT_ARMS_ARE. options: for
    every `vllm serve`. together: keep all arms in memory. disturber: measure each arm once more
    while this runs. logs: a folder for the servers' logs; None: they are not kept.
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
    logs: Path | None


@dataclass(frozen=True)
class Result:
    """absent: by the name of an arm that didn't start, why."""

    request: Request
    commands: dict[str, list[str]]
    client_command: str
    measurements: Measurements
    variants: list[str]
    absent: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        request = self.request
        disturber = request.disturber
        return {
            "model": request.model,
            "ranks": len(request.parts),
            "on": request.parts.kind,
            "load_of_a_client": asdict(request.load),
            "rounds": request.num_rounds,
            "seed": request.seed,
            "together": request.together,
            "disturbance": disturber and disturber.name,
            "commands": self.commands,
            "client_command": self.client_command,
            "absent": self.absent,
            **to_json(self.measurements, self.variants),
        }


class Reporter(Protocol):
    """Is told how the work goes."""

    def begin(self, commands: dict[str, list[str]], client_command: str) -> None:
        """Called before the first server starts."""

    def measured(self, one: Measurement) -> None:
        """Called after each measurement."""


def bench_serve(request: Request, reporter: Reporter) -> Result:
    """Raises BenchError if a request isn't answered."""
    small_cache = request.together or request.parts.kind == "cpu"
    common = Common(request.model, request.load, request.options, small_cache)
    extra = ("--trust-remote-code",) if common.trusts_remote_code() else ()
    options = ClientOptions(request.model, request.load, extra)
    servers = recipes(request.arms, request.parts)
    with ExitStack() as stack:
        folder = request.logs or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        maker = ArmMaker(common, servers, free_ports(sum(map(len, servers.values()))), folder)
        commands = {name: maker.commands(name) for name in servers}
        client_command = options.printed(maker.urls(request.arms[0])[0], request.seed)
        reporter.begin(commands, client_command)
        rounds = Rounds(
            stack.enter_context(Clients(folder / "clients.log")),
            options,
            num_clients=len(request.parts),
            disturber=request.disturber,
            report=reporter.measured,
            seed=request.seed,
        )
        make = _together(stack) if request.together else InTurns
        stage = make(maker, rounds.warm_up)
        rounds.run(stage, request.num_rounds)
    return Result(
        request, commands, client_command, rounds.found, rounds.variants, dict(stage.absent)
    )


def _together(stack: ExitStack) -> Callable[..., Together]:
    return lambda maker, prepare: stack.enter_context(Together(maker, prepare))
