# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A `vllm serve` process and all processes that it started."""

import contextlib
import http.client
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from vllm_dwdp.bench.errors import BenchError

STOP_S = 60
_ERROR = re.compile(r"[\w.]*(Error|Exception)(: .+|$)")
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Asks servers of this host without a proxy, whatever the environment says."""


class Server:
    """A server that starts at construction; call `wait_until_ready` before the first request.

    log: a file to which all that it prints is added. environment: all of its variables.
    own_session: keep the terminal's Ctrl-C from it, so that only `stop` ends it.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        port: int,
        log: Path,
        environment: Mapping[str, str],
        own_session: bool = False,
    ) -> None:
        self.port = port
        self.log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                command, env=environment, stdout=out, stderr=out, start_new_session=own_session
            )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_until_ready(self, seconds: float) -> None:
        """Raises BenchError if the server ends before it is healthy, or if the time is up."""
        deadline = time.monotonic() + seconds
        while (ended := self.process.poll()) is None and time.monotonic() < deadline:
            if self._is_healthy():
                return
            time.sleep(0.5)
        how = f"was not healthy within {seconds:.0f} s" if ended is None else f"ended with {ended}"
        raise BenchError(f"the server {how}: {self.complaint()}")

    def text(self) -> str:
        """The server's log so far."""
        return self.log.read_text(errors="replace")

    def complaint(self) -> str:
        """The first error in the log, which is the cause of later ones; else the last line."""
        lines = [line for line in self.text().splitlines() if " WARNING " not in line]
        for line, following in zip(lines, [*lines[1:], ""], strict=False):
            if (found := _ERROR.search(line)) and "root cause" not in line:
                detail = following if following.startswith(" ") else ""
                return " ".join(f"{found[0]} {detail}".split())
        return lines[-1].strip() if lines else "its log is empty"

    def family(self) -> list[psutil.Process]:
        """The server's process and all its descendants."""
        server = psutil.Process(self.process.pid)
        return [server, *server.children(recursive=True)]

    def stop(self, strike: int = signal.SIGINT) -> int | None:
        """Send a signal and wait; returns the exit code, None if a process had to be killed."""
        if self.process.poll() is not None:
            return self.process.returncode
        family = self.family()
        self._front_end(family).send_signal(strike)
        gone, left = psutil.wait_procs(family, timeout=STOP_S)
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        codes = {process.pid: process.returncode for process in gone}
        return None if left else codes[self.process.pid]

    def _front_end(self, family: Sequence[psutil.Process]) -> psutil.Process:
        """The process of `vllm serve`, to which signals are sent."""
        return family[0]

    def _is_healthy(self) -> bool:
        try:
            _OPENER.open(f"{self.url}/health", timeout=1).close()
        except (OSError, http.client.HTTPException):
            return False
        return True
