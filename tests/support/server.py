# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A `vllm serve` process and all processes that it started."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from support.hosts import on_host
from support.ports import free_port

READY_S = 400
STOP_S = 60


class Server:
    """A server that starts at construction; call `wait_until_ready` before the first request.

    host: the name of another host to run on; see hosts.py.
    """

    def __init__(
        self,
        model: Path | str,
        *options: str,
        log: Path,
        environment: Mapping[str, str] = {},
        host: str | None = None,
    ) -> None:
        self.log = log
        self._host = host
        self.port = free_port()
        command = [str(Path(sys.executable).with_name("vllm")), "serve", str(model)]
        command += ["--served-model-name", "demo", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), *options]
        if host is not None:
            command = on_host(host, command)
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                command, env={**os.environ, **environment}, stdout=out, stderr=out
            )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_S
        while (ended := self.process.poll()) is None and time.monotonic() < deadline:
            if self._is_healthy():
                return
            time.sleep(0.5)
        how = f"not healthy within {READY_S} s" if ended is None else f"ended with {ended}"
        raise AssertionError(f"server {how}:\n{self.text()[-2000:]}\n{self._errors()}")

    def text(self) -> str:
        """The server's log so far."""
        return self.log.read_text(errors="replace")

    def wait_for_log(self, pattern: str, timeout_s: float = 120) -> re.Match[str]:
        """Wait until the log matches; fails if the server ends before or the time is up."""
        deadline = time.monotonic() + timeout_s
        while not (found := re.search(pattern, self.text())):
            is_over = self.process.poll() is not None or time.monotonic() > deadline
            assert not is_over, f"no {pattern!r} in:\n{self.text()[-3000:]}"
            time.sleep(0.05)
        return found

    def complete(self, prompt: str, max_tokens: int = 64) -> str:
        body = {"model": "demo", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
        data = json.dumps({**body, "ignore_eos": True}).encode()
        request = urllib.request.Request(
            f"{self.url}/v1/completions", data, {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return str(json.load(answer)["choices"][0]["text"])

    def family(self) -> list[psutil.Process]:
        """The server's process and all its descendants."""
        server = psutil.Process(self.process.pid)
        return [server, *server.children(recursive=True)]

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, str]:
        """Call an endpoint; returns the status and the text of the answer."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.url}{path}", data, {"content-type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def workers(self) -> list[psutil.Process]:
        """The workers of this server's DWDP ranks, in the order of their ranks."""
        found = re.findall(r"Worker pid=(\d+)\).*DWDP rank (\d+) of", self.text())
        return [psutil.Process(int(pid)) for pid, _ in sorted(found, key=lambda f: int(f[1]))]

    def pause(self) -> None:
        for process in self.family():
            process.suspend()

    def resume(self) -> None:
        for process in self.family():
            process.resume()

    def stop(self, strike: int = signal.SIGINT) -> int | None:
        """Send a signal and wait; returns the exit code, None if a process had to be killed."""
        if self.process.poll() is not None:
            return self.process.returncode
        family = self.family()
        vllm = family[0 if self._host is None else 1]  # there the first one is unshare, which waits
        vllm.send_signal(strike)
        gone, left = psutil.wait_procs(family, timeout=STOP_S)
        for process in left:
            process.kill()
        self.process.wait()
        codes = {process.pid: process.returncode for process in gone}
        return None if left else codes[self.process.pid]

    def _errors(self) -> str:
        """The log lines that name an error; vLLM logs the cause long before its last lines."""
        return "\n".join(line for line in self.text().splitlines() if "Error" in line)[-2000:]

    def _is_healthy(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.url}/health", timeout=1)
        except OSError:
            return False
        return True
