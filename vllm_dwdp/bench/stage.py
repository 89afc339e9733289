# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Brings arms onto the machine, one at a time.

Either all arms stay in memory, and all but one are stopped (SIGSTOP), or an arm is started whenever
it is its turn.
"""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from vllm_dwdp.bench.arm import Arm
from vllm_dwdp.bench.arms import ServerRecipe
from vllm_dwdp.bench.errors import BenchError
from vllm_dwdp.bench.ports import free_port
from vllm_dwdp.bench.serve_command import HOST, ServeOptions, arguments, environment, printed
from vllm_dwdp.bench.server import Server

READY_S = 1800.0
"""The most time that a server may take to start; large models are read for many minutes."""


class ArmMaker:
    """Starts the arms. logs: a folder for a file of each server."""

    def __init__(
        self, options: ServeOptions, recipes: Mapping[str, Sequence[ServerRecipe]], logs: Path
    ) -> None:
        self.recipes = recipes
        self._options = options
        self._logs = logs
        self._first_port = port = free_port(sum(map(len, recipes.values())))
        self._ports: dict[str, range] = {}
        for name, servers in recipes.items():
            self._ports[name] = range(port, port := port + len(servers))

    def first_url(self) -> str:
        return f"http://{HOST}:{self._first_port}"

    def commands(self, name: str) -> list[str]:
        """The commands that start an arm, as one would type them."""
        recipes = zip(self.recipes[name], self._ports[name], strict=True)
        return [printed(self._options, recipe, port) for recipe, port in recipes]

    @contextlib.contextmanager
    def started(self, name: str) -> Iterator[Arm]:
        """Start an arm, and stop it at the end. Raises BenchError if a server doesn't start."""
        arm = Arm(name, [])
        try:
            for index in range(len(self.recipes[name])):
                arm.servers.append(self._server(name, index))
            for server in arm.servers:
                server.wait_until_ready(READY_S)
            yield arm
        finally:
            arm.stop()

    def _server(self, name: str, index: int) -> Server:
        recipe, port = self.recipes[name][index], self._ports[name][index]
        try:
            return Server(
                arguments(self._options, recipe, port),
                port=port,
                log=self._logs / f"{name}-{index}.log",
                environment=environment(recipe),
                own_session=True,
            )
        except OSError as error:
            raise BenchError(f"'vllm serve' can't be started: {error}.") from error


class Stage(ABC):
    """Where one arm at a time runs. Use it as a context, which stops the arms that it holds.

    failures: by the name of an arm that can't be measured any more, why.
    """

    def __init__(self, maker: ArmMaker, prepare: Callable[[Arm], None]) -> None:
        """prepare: is called with every arm that has started, before it is measured."""
        self.failures: dict[str, str] = {}
        self._maker = maker
        self._prepare = prepare

    @property
    def present(self) -> list[str]:
        """The names of arms that have not failed."""
        return [name for name in self._maker.recipes if name not in self.failures]

    @abstractmethod
    def __enter__(self) -> "Stage": ...

    @abstractmethod
    def __exit__(self, *_: object) -> None: ...

    @abstractmethod
    def on(self, name: str) -> contextlib.AbstractContextManager[Arm | None]:
        """A context in which the arm, and no other one, runs; None if it doesn't start."""

    def fail(self, arm: Arm, error: BenchError) -> None:
        """Note that an arm can't be measured any more."""
        logs = "; ".join(server.complaint() for server in arm.servers)
        self.failures[arm.name] = f"{error} Log: {logs}"

    def _start(self, name: str, stack: contextlib.ExitStack) -> Arm | None:
        """Start and prepare an arm, which the stack stops. Returns None if that fails."""
        with contextlib.ExitStack() as own:
            try:
                arm = own.enter_context(self._maker.started(name))
            except BenchError as error:
                self.failures[name] = str(error)
                return None
            try:
                self._prepare(arm)
            except BenchError as error:
                self.fail(arm, error)
                return None
            stack.push(own.pop_all())
            return arm


class InTurns(Stage):
    """Starts an arm for every turn."""

    def __enter__(self) -> "InTurns":
        return self

    def __exit__(self, *_: object) -> None:
        """Does nothing: arms end with their turns."""

    @contextlib.contextmanager
    def on(self, name: str) -> Iterator[Arm | None]:
        with contextlib.ExitStack() as stack:
            yield self._start(name, stack)


class Together(Stage):
    """Keeps all arms in memory; the context starts them, too."""

    def __init__(self, maker: ArmMaker, prepare: Callable[[Arm], None]) -> None:
        super().__init__(maker, prepare)
        self._arms: dict[str, Arm] = {}
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Together":
        with self._stack as stack:
            for name in self._maker.recipes:
                if (arm := self._start(name, stack)) is not None:
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
