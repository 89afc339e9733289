# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""The caller's handle of one rank of an offline job: its messages, wherever it runs."""

import contextlib
import pickle
import queue
import threading
import time
from typing import Any, Protocol

from vllm_dwdp.offline.errors import RankDied
from vllm_dwdp.offline.parcels import Answer, opened, packed, packed_call

EXIT_S = 2.0


class Rank(Protocol):
    """A rank's process, here or on another node: rank_child.RankChild says what its methods do."""

    @property
    def exit_code(self) -> int | None: ...
    def how_ended(self, *, has_begun: bool) -> str: ...
    def receive(self) -> bytes: ...
    def send(self, message: bytes) -> None: ...
    def close(self) -> None: ...
    def note_family(self) -> None: ...
    def terminate(self) -> None: ...
    def join(self, timeout_s: float) -> None: ...
    def end(self, timeout_s: float) -> None: ...
    def end_family(self) -> None: ...


class RankHandle:
    """One rank, with two threads that read and write its messages.

    The threads keep a full pipe from blocking either end, and a KeyboardInterrupt from cutting a
    message in two. The rank's messages arrive in `news`, as (handle, message).
    """

    def __init__(self, index: int, rank: Rank, news: queue.SimpleQueue[Any]) -> None:
        self.index = index
        self.in_flight: set[int] = set()
        self._rank = rank
        self._news = news
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._called: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()
        self._has_begun = False
        self._call_turn = threading.Lock()
        self._join_turn = threading.Lock()
        self._pumps = [
            threading.Thread(target=pump, name=f"dwdp-rank-{index}", daemon=True)
            for pump in (self._read, self._write)
        ]
        for thread in self._pumps:
            thread.start()

    @property
    def exit_code(self) -> int | None:
        return self._rank.exit_code

    def send_items(self, kind: str, items: list[tuple[int, Any]]) -> None:
        """Send items to render or to run (`kind`). Raises TypeError if one doesn't pickle."""
        parcels = [(item_id, packed(item)) for item_id, item in items]
        self.in_flight.update(item_id for item_id, _ in items)
        self.send((kind, parcels))

    def send(self, message: tuple[Any, ...] | None) -> None:
        """Have the writing thread send a message. `news`, not this, tells of a rank that died."""
        self._outbox.put(pickle.dumps(message))

    def call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Have the rank call a method of its vllm.LLM; returns the result.

        Raises what the method raises, RankDied, and TypeError for arguments that don't pickle.
        """
        with self._call_turn:
            self.send(("call", packed_call(name, args, kwargs)))
            if (found := self._called.get()) is None:
                self._called.put(None)  # for the next call
                raise RankDied(f"dwdp rank {self.index} ended; see the log above.")
        answer = opened(found)
        if answer.is_error:
            raise answer.content
        return answer.content

    def ask_to_end(self) -> None:
        """Ask the rank to end its engine and itself; terminate it if it has sent no message yet."""
        self.send(None)
        if not self._has_begun:
            self._rank.terminate()

    def join(self, deadline: float) -> None:
        """Wait until the rank has ended, and kill it at the deadline (of `time.monotonic`).

        Its engine and worker are killed, too, if they outlive it. The threads have ended as well:
        at the end of the program Ray crashes if one of them still asks it.
        """
        with self._join_turn:
            self._rank.end(max(0.0, deadline - time.monotonic()))
        self._rank.end_family()
        for thread in self._pumps:
            thread.join(EXIT_S)

    def note_family(self) -> None:
        """Note the rank's engine and worker while it lives, to end them if it is killed."""
        self._rank.note_family()

    def _read(self) -> None:
        try:
            while True:
                self._sort(*pickle.loads(self._rank.receive()))
        except (EOFError, OSError):
            pass  # the rank ended
        finally:
            self._outbox.put(None)
            self._called.put(None)
            self._news.put((self, ("ended", self._how_ended())))

    def _sort(self, kind: str, body: Any) -> None:
        self._has_begun = True
        if kind == "called":
            self._called.put(body)
        else:
            found = [opened(answer) for answer in body] if kind == "answers" else body
            self._news.put((self, (kind, found)))

    def _how_ended(self) -> str:
        with self._join_turn:
            self._rank.join(EXIT_S)
        return self._rank.how_ended(has_begun=self._has_begun)

    def _write(self) -> None:
        with contextlib.suppress(OSError):
            while (data := self._outbox.get()) is not None:
                self._rank.send(data)
        self._rank.close()
