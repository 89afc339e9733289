# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A board on which the processes that one command started leave notes for each other.

The command's front-end holds a memory file. Its configuration carries the file's path, which lies
below `/proc`, to engines and workers. They open the file and add lines to it.

* Only processes of the same user, in the same process namespace, can open the board.
* The first note under a key counts. The rendezvous port is the exception: a job that starts again
  posts a new one, and the newest counts.
* The board needs no clean-up: it is gone when the front-end is.
"""

import contextlib
import json
import os
import secrets
import weakref
from collections.abc import Iterator
from typing import Any

from vllm_dwdp.group.errors import GroupError

FILE_NAME = "vllm-dwdp-board"
PORT_KEY = "rendezvous port"
_held: dict[int, "JobBoard"] = {}
"""The boards that this process holds, by descriptor, the newest last."""
_past_notes: dict[str, str] = {}
"""The notes of boards that this process held for configurations that no longer exist."""


class JobBoard:
    """One command's board, as seen from any of its processes."""

    def __init__(self, path: str) -> None:
        self._path = path

    def post(self, key: str, value: str) -> None:
        """Add a note. `notes` ignores it if the key has a note already. Raises OSError."""
        fd = self._open(os.O_WRONLY | os.O_APPEND)
        try:
            os.write(fd, (json.dumps([key, value]) + "\n").encode())
        finally:
            os.close(fd)

    def notes(self) -> dict[str, str]:
        """The first note under each key. Raises OSError."""
        return dict(reversed(self._lines()))

    def newest(self, key: str) -> str | None:
        """The last note under a key. Raises OSError."""
        return dict(self._lines()).get(key)

    def _lines(self) -> list[tuple[str, str]]:
        with open(self._open(os.O_RDONLY), encoding="utf-8") as lines:
            return [tuple(json.loads(line)) for line in lines if line.endswith("\n")]

    def _open(self, flags: int) -> int:
        """Open the board. The path may lead to another process's file by now: that is an error."""
        fd = os.open(self._path, flags | os.O_CLOEXEC | os.O_NONBLOCK)
        if FILE_NAME in os.readlink(f"/proc/self/fd/{fd}"):
            return fd
        os.close(fd)
        raise FileNotFoundError(f"expected the board of a dwdp job at {self._path}, got none")


class BoardNotice:
    """Rank 0's port on the board of the command that started all ranks.

    `post` and `read` raise GroupError where the board can't be opened.
    """

    def __init__(self, board: JobBoard) -> None:
        self._board = board

    def post(self, port: int) -> None:
        with self._explaining():
            self._board.post(PORT_KEY, str(port))

    def read(self) -> int:
        with self._explaining():
            return int(self._board.newest(PORT_KEY) or 0)

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise GroupError(
                f"expected to open the board that the job's front-end holds, got {error}; set "
                "dwdp.rendezvous to 127.0.0.1 and a free port."
            ) from error


def put_up(parallel_config: Any) -> None:
    """Make a board for the job of this configuration, and give the job an id of its own.

    Both are attributes that vLLM doesn't know. They travel with the configuration, but enter
    neither vLLM's compile-cache key nor its comparison of ranks.
    """
    fd = os.memfd_create(FILE_NAME)
    parallel_config.dwdp_board = f"/proc/{os.getpid()}/fd/{fd}"
    parallel_config.dwdp_job_id = secrets.token_hex(8)
    _held[fd] = JobBoard(parallel_config.dwdp_board)
    weakref.finalize(parallel_config, _take_down, fd).atexit = False


def board_of(parallel_config: Any) -> JobBoard:
    return JobBoard(getattr(parallel_config, "dwdp_board", "no path"))


def job_id_of(parallel_config: Any) -> str:
    """An id that all processes that one command started share, and no others; "" without one."""
    return str(getattr(parallel_config, "dwdp_job_id", ""))


def newest_note(key: str) -> str | None:
    """The note under this key of the newest job that left one, even if that job has ended."""
    for board in reversed(_held.values()):
        if (note := board.notes().get(key)) is not None:
            return note
    return _past_notes.get(key)


def remember(key: str, value: str) -> None:
    """Keep a note of a job that was refused before it had a board."""
    _past_notes[key] = value


def _take_down(fd: int) -> None:
    """Keep the notes of a board whose configuration no longer exists, and close the board."""
    with contextlib.suppress(OSError):
        _past_notes.update(_held.pop(fd).notes())
    os.close(fd)
