# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A directory of this process alone, gone when the process or its owner is."""

import os
import shutil
import socket
import tempfile
import weakref
from pathlib import Path

from vllm_dwdp.group.errors import GroupError

MAX_SOCKET_PATH_BYTES = 107
NAME_BYTES = 40
PREFIX = "vllm-dwdp-"
SOCKET_NAME = "descriptors"


class PrivateDirectory:
    """Mode 0700, with a path short enough for a socket in it."""

    def __init__(self) -> None:
        parent = socket_parent()
        _remove_orphans(parent)
        try:
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        except OSError as error:
            raise GroupError(
                f"expected to make a directory for the descriptor socket in {parent}, got "
                f"{error}; set XDG_RUNTIME_DIR to a short, writable path."
            ) from error
        self._remove = weakref.finalize(self, _remove, self.path, os.getpid())

    def remove(self) -> None:
        self._remove()


def socket_parent() -> str:
    """Where private directories go: short enough a path for a socket, and writable."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    is_short = len(os.fsencode(runtime)) + NAME_BYTES <= MAX_SOCKET_PATH_BYTES
    return runtime if is_short and os.access(runtime, os.W_OK | os.X_OK) else "/tmp"


def _remove_orphans(parent: str) -> None:
    """Remove what ranks of this user left that were killed in the middle of their start-up."""
    for path in Path(parent).glob(f"{PREFIX}*/{SOCKET_NAME}"):
        if _is_orphan(path):
            shutil.rmtree(path.parent, ignore_errors=True)


def _is_orphan(path: Path) -> bool:
    """Whether this user made the socket and nobody listens to it any more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.setblocking(False)
        try:
            if path.stat().st_uid != os.geteuid():
                return False
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def _remove(path: Path, owner_pid: int) -> None:
    """A forked child leaves its parent's directory alone."""
    if os.getpid() == owner_pid:
        shutil.rmtree(path, ignore_errors=True)
