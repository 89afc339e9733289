# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A directory for one process's socket, removed with the object that owns it.

It lies where vLLM puts its own sockets: in `VLLM_RPC_BASE_PATH`, else in Python's directory for
temporary files. The kernel limits a socket's path to 107 bytes; names through `/proc/self/fd` get
around that.
"""

import contextlib
import os
import shutil
import socket
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path

from vllm_dwdp.group.errors import GroupError

PREFIX = "vllm-dwdp-"
SOCKET_NAME = "descriptors"


class PrivateDirectory:
    """A directory with mode 0700. Raises GroupError when no place for it can be written to."""

    def __init__(self) -> None:
        self.path = _make()
        self._remove = weakref.finalize(self, _remove, self.path, os.getpid())

    def listen(self, *, backlog: int) -> socket.socket:
        """A listening socket in this directory, at `path / SOCKET_NAME`.

        Raises GroupError where the file system takes no sockets.
        """
        try:
            return self._listen(backlog)
        except OSError as error:
            self.remove()
            raise GroupError(
                f"expected to make a socket in {self.path.parent}, got {error}; set TMPDIR to a "
                "directory that allows it."
            ) from error

    def _listen(self, backlog: int) -> socket.socket:
        """Give the socket its name once it listens: before that it would look like an orphan."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        unfinished = self.path / f"{SOCKET_NAME}.new"
        with short_name(unfinished) as name:
            listener.bind(name)
        listener.listen(backlog)
        unfinished.rename(self.path / SOCKET_NAME)
        return listener

    def remove(self) -> None:
        self._remove()


def places() -> list[str]:
    """The directories in which to try to make a PrivateDirectory, in this order."""
    base = os.environ.get("VLLM_RPC_BASE_PATH")
    with contextlib.suppress(FileNotFoundError):
        return [*filter(None, [base]), tempfile.gettempdir()]
    return [*filter(None, [base])]


@contextlib.contextmanager
def short_name(path: str | Path) -> Iterator[str]:
    """A short name for a socket's path, for paths that are too long for the kernel."""
    parent, name = os.path.split(path)
    directory = os.open(parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{name}"
    finally:
        os.close(directory)


def _make() -> Path:
    failures = []
    for place in places():
        _remove_orphans(place)
        try:
            return Path(tempfile.mkdtemp(prefix=PREFIX, dir=os.path.abspath(place)))
        except OSError as error:
            failures.append(str(error))
    raise GroupError(
        f"expected to make a directory for the descriptor socket, got "
        f"{'; '.join(failures) or 'no directory for temporary files'}; set TMPDIR to a writable "
        "directory."
    )


def _remove_orphans(place: str) -> None:
    """Remove directories of this user's ranks that were killed during start-up."""
    for path in Path(place).glob(f"{PREFIX}*/{SOCKET_NAME}"):
        if _is_orphan(path):
            shutil.rmtree(path.parent, ignore_errors=True)


def _is_orphan(path: Path) -> bool:
    """Whether this user made the socket and no process listens to it any more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.setblocking(False)
        try:
            if path.stat().st_uid != os.geteuid():
                return False
            with short_name(path) as name:
                probe.connect(name)
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def _remove(path: Path, owner_pid: int) -> None:
    """Remove the directory, unless this process is a forked child of its owner."""
    if os.getpid() == owner_pid:
        shutil.rmtree(path, ignore_errors=True)
