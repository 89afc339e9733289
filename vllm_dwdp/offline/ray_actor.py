# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""What runs on a Ray node for one rank: an actor with the rank's process passes its messages.

* Ray ends the actor when the process that built the LLM ends. The rank watches its parent, the
  actor, and ends with it.
* Importing this doesn't import Ray. `ray_ranks` makes an actor of the class.
"""

import contextlib
import os

from vllm_dwdp.engine.setup.local_address import reserved_port
from vllm_dwdp.offline.pickled_options import PickledOptions
from vllm_dwdp.offline.rank_child import RankChild


class RankActor:
    """Its methods run in threads: one may wait for a message while others are called."""

    def __init__(self) -> None:
        self._held = contextlib.ExitStack()
        self._child: RankChild | None = None

    def reserve_port(self) -> int:
        """Reserve a port of this node for as long as the actor lives."""
        return self._held.enter_context(reserved_port())

    def gpus(self) -> list[str]:
        """The GPUs of this node that Ray has reserved for this actor."""
        import ray

        return list(map(str, ray.get_runtime_context().get_accelerator_ids().get("GPU", ())))

    def start(self, rank: int, environment: dict[str, str], options: PickledOptions) -> None:
        """Start the rank's process, which has these variables from its beginning on."""
        os.environ.update(environment)
        self._child = RankChild.start(rank, {}, options)

    def receive(self) -> bytes | None:
        """The rank's next message; None once it has ended."""
        try:
            return self._started.receive()
        except (EOFError, OSError):
            return None

    def send(self, message: bytes) -> bool:
        """Send the rank a message. Returns False if the rank has ended."""
        try:
            self._started.send(message)
        except OSError:
            return False
        return True

    def note_family(self) -> None:
        self._started.note_family()

    def terminate(self) -> None:
        self._started.terminate()

    def join(self, timeout_s: float) -> int | None:
        """Wait for the process, at most so long; returns its exit code if it has ended."""
        self._started.join(timeout_s)
        return self._started.exit_code

    def end(self, timeout_s: float) -> int | None:
        """Wait for the process, kill it after so long, and return its exit code."""
        self._started.end(timeout_s)
        return self._started.exit_code

    def end_family(self) -> None:
        self._started.end_family()

    @property
    def _started(self) -> RankChild:
        assert self._child is not None, f"no rank was started in process {os.getpid()}"
        return self._child
