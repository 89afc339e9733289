# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Measures all arms in rounds, each arm in every variant of a round."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

from vllm_dwdp.bench.arm import Arm
from vllm_dwdp.bench.client import ClientOptions, Clients, Served
from vllm_dwdp.bench.disturbance.disturber import Disturber
from vllm_dwdp.bench.errors import BenchError
from vllm_dwdp.bench.memory_use import MemoryUse, memory_of
from vllm_dwdp.bench.stage import Stage

UNDISTURBED, DISTURBED = "undisturbed", "disturbed"
WARM_UP_PROMPTS = 6


@dataclass(frozen=True)
class Measurement:
    """One arm in one round.

    core_share: the share of a core that the other process took; None if none ran, or on a GPU.
    """

    arm: str
    variant: str
    round: int
    served: Served
    core_share: float | None


@dataclass
class Measurements:
    """All that was measured. cpu_seconds: by arm and variant, by the titles of processes."""

    rounds: list[Measurement] = field(default_factory=list)
    memory: dict[str, MemoryUse] = field(default_factory=dict)
    cpu_seconds: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)

    def of(self, variant: str) -> dict[str, list[Measurement]]:
        """The measurements of a variant by arm, in the order of rounds."""
        found: dict[str, list[Measurement]] = {}
        for one in self.rounds:
            if one.variant == variant:
                found.setdefault(one.arm, []).append(one)
        return found


class Reporter(Protocol):
    """Hears how the work goes."""

    def begin(self, commands: dict[str, list[str]], client_command: str) -> None:
        """Called before the first server starts."""

    def ready(self, arm: str) -> None:
        """Called when an arm has started and is warm."""

    def measured(self, one: Measurement) -> None:
        """Called after each measurement."""


class Rounds:
    """Sends arms the requests of all rounds, and keeps what was measured in `found`.

    first_seed: the seed of the first client in the first round; all others follow it.
    """

    def __init__(
        self,
        clients: Clients,
        options: ClientOptions,
        *,
        num_clients: int,
        disturber: Disturber | None,
        reporter: Reporter,
        first_seed: int = 0,
    ) -> None:
        self.found = Measurements()
        self.variants = [UNDISTURBED, *([DISTURBED] if disturber else [])]
        self._clients = clients
        self._options = options
        self._num_clients = num_clients
        self._disturber = disturber
        self._reporter = reporter
        self._first_seed = first_seed

    def warm_up(self, arm: Arm) -> None:
        """Bring an arm that has started to the state in which it is measured."""
        load = replace(self._options.load, num_prompts=WARM_UP_PROMPTS)
        self._serve(arm, replace(self._options, load=load), round_idx=-1)
        self.found.memory[arm.name] = memory_of(arm)
        self._reporter.ready(arm.name)

    def run(self, stage: Stage, num_rounds: int) -> None:
        """Run the rounds; each begins with another arm, and in a round all get equal requests.

        An arm that fails is left out from then on. Ctrl-C ends the rounds.
        """
        with contextlib.suppress(KeyboardInterrupt):
            for round_idx in range(num_rounds):
                names = stage.present
                first = round_idx % len(names) if names else 0
                for name in names[first:] + names[:first]:
                    with stage.on(name) as arm:
                        if arm is not None:
                            self._measure(arm, round_idx, stage)

    def _measure(self, arm: Arm, round_idx: int, stage: Stage) -> None:
        """Measure the variants of a round, in odd rounds the other way round."""
        for variant in self.variants[:: -1 if round_idx % 2 else 1]:
            try:
                one = self._measure_variant(arm, round_idx, variant)
            except BenchError as error:
                stage.fail(arm, error)
                return
            self.found.rounds.append(one)
            self._reporter.measured(one)

    def _measure_variant(self, arm: Arm, round_idx: int, variant: str) -> Measurement:
        before = arm.cpu_seconds()
        with self._disturbed(variant) as core_share:
            served = self._serve(arm, self._options, round_idx)
            share = core_share()
        used = self.found.cpu_seconds.setdefault((arm.name, variant), Counter())
        used.update(arm.cpu_seconds() - before)
        return Measurement(arm.name, variant, round_idx, served, share)

    @contextlib.contextmanager
    def _disturbed(self, variant: str) -> Iterator[Callable[[], float | None]]:
        """Disturb if the variant says so; yields a function that returns Measurement.core_share."""
        if variant == UNDISTURBED or self._disturber is None:
            yield lambda: None
            return
        takes_a_core = self._disturber.takes_a_core
        with self._disturber.running() as running:
            yield lambda: running.share_of_core() if takes_a_core else None

    def _serve(self, arm: Arm, options: ClientOptions, round_idx: int) -> Served:
        return self._clients.serve(
            [server.url for server in arm.servers],
            options,
            num_clients=self._num_clients,
            first_seed=self._first_seed + max(0, round_idx) * self._num_clients,
        )
