# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Measures all arms in rounds, each arm in every variant of a round."""

import contextlib
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from vllm_dwdp.bench.arm import Arm
from vllm_dwdp.bench.client import ClientOptions, Clients, Served
from vllm_dwdp.bench.disturbance.disturber import Disturber
from vllm_dwdp.bench.memory_use import MemoryUse, memory_of
from vllm_dwdp.bench.stage import Stage

UNDISTURBED, DISTURBED = "undisturbed", "disturbed"
WARM_UP_PROMPTS = 6


@dataclass(frozen=True)
class Measurement:
    """One arm in one round. taken: the share of a core that the other process took; 0: none ran."""

    arm: str
    variant: str
    round: int
    served: Served
    taken: float


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


class Rounds:
    """report: is called with each measurement as soon as it is there."""

    def __init__(
        self,
        clients: Clients,
        options: ClientOptions,
        *,
        num_clients: int,
        disturber: Disturber | None,
        report: Callable[[Measurement], None],
        seed: int = 0,
    ) -> None:
        self.found = Measurements()
        self.variants = [UNDISTURBED, *([DISTURBED] if disturber else [])]
        self._clients = clients
        self._options = options
        self._num_clients = num_clients
        self._disturber = disturber
        self._report = report
        self._seeds = random.Random(seed)

    def warm_up(self, arm: Arm) -> None:
        """Bring an arm that has started to the state in which it is measured."""
        load = replace(self._options.load, num_prompts=WARM_UP_PROMPTS)
        self._serve(arm, replace(self._options, load=load), first_seed=0)
        self.found.memory[arm.name] = memory_of(arm)

    def run(self, stage: Stage, num_rounds: int) -> None:
        """Run the rounds; each begins with another arm, and in a round all get equal requests."""
        for number in range(num_rounds):
            seed = self._seeds.randrange(1 << 30)
            names = stage.present
            first = number % len(names) if names else 0
            for name in names[first:] + names[:first]:
                with stage.on(name) as arm:
                    if arm is not None:
                        self._measure(arm, number, seed)

    def _measure(self, arm: Arm, number: int, seed: int) -> None:
        for variant in self.variants:
            before = arm.cpu_seconds()
            with self._disturbed(variant) as taken:
                served = self._serve(arm, self._options, first_seed=seed)
                share = taken()
            used = self.found.cpu_seconds.setdefault((arm.name, variant), Counter())
            used.update(arm.cpu_seconds() - before)
            self.found.rounds.append(Measurement(arm.name, variant, number, served, share))
            self._report(self.found.rounds[-1])

    @contextlib.contextmanager
    def _disturbed(self, variant: str) -> Iterator[Callable[[], float]]:
        """Disturb if the variant says so; yields what tells the share of a core that was taken."""
        if variant == UNDISTURBED or self._disturber is None:
            yield lambda: 0.0
            return
        with self._disturber.running() as running:
            yield running.share_of_core

    def _serve(self, arm: Arm, options: ClientOptions, *, first_seed: int) -> Served:
        urls = [server.url for server in arm.servers]
        return self._clients.serve(
            urls, options, num_clients=self._num_clients, first_seed=first_seed
        )
