# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Brings arms onto the machine, one at a time.

Where memory holds all arms, they stay in it and all but one are stopped (SIGSTOP). Otherwise an arm
is started whenever it is its turn.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from vllm_dwdp.bench.arm import Arm
from vllm_dwdp.bench.errors import BenchError
from vllm_dwdp.bench.recipe import ServerRecipe
from vllm_dwdp.bench.serve_command import Common, arguments, environment, printed
from vllm_dwdp.bench.server import Server

READY_S = 1800.0
"""The most time that a server may take to start; large models are read for many minutes."""


class ArmMaker:
    """Starts the arms. logs: a folder for a file of each server."""

    def __init__(
        self,
        common: Common,
        recipes: Mapping[str, Sequence[ServerRecipe]],
        ports: Sequence[int],
        logs: Path,
    ) -> None:
        self.common = common
        self.recipes = recipes
        self._ports: dict[str, list[int]] = {}
        self._logs = logs
        left = list(ports)
        for name, servers in recipes.items():
            self._ports[name], left = left[: len(servers)], left[len(servers) :]

    def commands(self, name: str) -> list[str]:
        """The commands that start an arm, as one would type them."""
        recipes = zip(self.recipes[name], self._ports[name], strict=True)
        return [printed(self.common, recipe, port) for recipe, port in recipes]

    def urls(self, name: str) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self._ports[name]]

    @contextlib.contextmanager
    def started(self, name: str) -> Iterator[Arm]:
        """Start an arm, and stop it at the end. Raises BenchError if a server doesn't start."""
        arm = Arm(name, [])
        try:
            for index, recipe in enumerate(self.recipes[name]):
                arm.servers.append(self._server(name, index, recipe))
            for server in arm.servers:
                server.wait_until_ready(READY_S)
            yield arm
        finally:
            arm.stop()

    def _server(self, name: str, index: int, recipe: ServerRecipe) -> Server:
        port = self._ports[name][index]
        return Server(
            arguments(self.common, recipe, port),
            port=port,
            log=self._logs / f"{name}-{index}.log",
            environment=environment(recipe),
        )


class Stage(ABC):
    """absent: by the name of an arm that doesn't start or doesn't answer at first, why."""

    def __init__(self, maker: ArmMaker, prepare: Callable[[Arm], None]) -> None:
        """prepare: is called with every arm that has started, before it is measured."""
        self._maker = maker
        self._prepare = prepare
        self.absent: dict[str, str] = {}

    @property
    def present(self) -> list[str]:
        """The names of arms that have not failed to start."""
        return [name for name in self._maker.recipes if name not in self.absent]

    @abstractmethod
    def on(self, name: str) -> contextlib.AbstractContextManager[Arm | None]:
        """A context in which the arm, and no other one, runs; None if it doesn't start."""

    def _started(self, name: str, stack: contextlib.ExitStack) -> Arm | None:
        """Start and prepare an arm; the stack stops it. None if it is absent."""
        with contextlib.ExitStack() as own:
            try:
                arm = own.enter_context(self._maker.started(name))
                self._prepare_told(arm)
            except BenchError as error:
                self.absent[name] = str(error)
                return None
            stack.push(own.pop_all())
            return arm


    def _prepare_told(self, arm: Arm) -> None:
        """Prepare an arm; an error also says what the logs of its servers say."""
        try:
            self._prepare(arm)
        except BenchError as error:
            logs = "; ".join(server.complaint() for server in arm.servers)
            raise BenchError(f"{error} It says: {logs}") from error


class InTurns(Stage):
    """Starts an arm for every turn."""

    @contextlib.contextmanager
    def on(self, name: str) -> Iterator[Arm | None]:
        with contextlib.ExitStack() as stack:
            yield self._started(name, stack)


class Together(Stage):
    """Keeps all arms in memory. Use it as a context, which starts and stops them."""

    def __init__(self, maker: ArmMaker, prepare: Callable[[Arm], None]) -> None:
        super().__init__(maker, prepare)
        self._arms: dict[str, Arm] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Together":
        with self._stack as stack:
            for name in self._maker.recipes:
                if (arm := self._started(name, stack)) is not None:
                    arm.pause()
                    self._arms[name] = arm
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def on(self, name: str) -> Iterator[Arm | None]:
        arm = self._arms[name]
        arm.resume()
        try:
            yield arm
        finally:
            arm.pause()
