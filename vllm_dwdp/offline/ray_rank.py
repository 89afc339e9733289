# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""One rank on a Ray node, as the process that built the LLM sees it."""

from typing import Any

EXTRA_S = 5.0
"""How much longer than the actor this process waits for an answer."""


class RayRank:
    """A rank that an actor holds (ray_actor.RankActor). Has the methods of a RankChild.

    An actor that is gone, with its node or for another reason, is a rank that has ended.
    """

    def __init__(self, actor: Any, address: str) -> None:
        self._actor = actor
        self._address = address
        self._loss = ""
        self._session = _session()
        self.exit_code: int | None = None

    def how_ended(self, *, has_begun: bool) -> str:
        """Like RankChild, but a rank on another node doesn't import the script."""
        if self._loss:
            return f"its actor on Ray node {self._address} ended: {self._loss}"
        return f"its process on Ray node {self._address} ended (exit code {self.exit_code})"

    def receive(self) -> bytes:
        """Wait for the next message of the rank. Raises EOFError once it has ended."""
        if (message := self._ask("receive")) is None:
            raise EOFError
        return bytes(message)

    def send(self, message: bytes) -> None:
        """Send a message; waits while the rank reads none. Raises OSError once it has ended."""
        if not self._ask("send", message):
            raise BrokenPipeError

    def close(self) -> None:
        """Nothing to close: the pipe is the actor's."""

    def note_family(self) -> None:
        self._tell("note_family")

    def terminate(self) -> None:
        self._tell("terminate")

    def join(self, timeout_s: float) -> None:
        """Wait until the process has ended, at most so long."""
        self.exit_code = self._ask("join", timeout_s, wait_s=timeout_s + EXTRA_S)

    def end(self, timeout_s: float) -> None:
        """Wait until the process has ended, and kill it after so long."""
        self.exit_code = self._ask("end", timeout_s, wait_s=timeout_s + EXTRA_S)

    def end_family(self) -> None:
        """Kill what outlives the rank, and give its resources back to Ray."""
        self._ask("end_family", wait_s=EXTRA_S)
        if self._is_connected:
            import ray

            ray.kill(self._actor)

    @property
    def _is_connected(self) -> bool:
        """Whether this process is still connected to the cluster of the actor.

        A program may leave the cluster while its LLM lives. A call would then connect it again.
        """
        return bool(self._session) and _session() == self._session

    def _tell(self, method: str) -> None:
        if self._is_connected and not self._loss:
            getattr(self._actor, method).remote()

    def _ask(self, method: str, *args: Any, wait_s: float | None = None) -> Any:
        """The actor's answer; None if there is none to expect any more."""
        if not self._is_connected:
            self._loss = self._loss or "this program has left the Ray cluster"
        if self._loss:
            return None
        import ray
        from ray.exceptions import GetTimeoutError, RayError

        try:
            return ray.get(getattr(self._actor, method).remote(*args), timeout=wait_s)
        except GetTimeoutError:
            self._loss = f"it gave no answer to '{method}' in {wait_s} s"
        except RayError as error:
            self._loss = " ".join(str(error).split())
        return None


def _session() -> str:
    """The id of this program's connection to a Ray cluster; "" without one."""
    import ray

    return str(ray.get_runtime_context().get_job_id()) if ray.is_initialized() else ""
