# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A `vllm serve` process and all that it started."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import psutil

READY_S = 400
STOP_S = 60


class Server:
    """Serves from construction on; `wait_until_ready` before the first request."""

    def __init__(
        self, model: Path | str, *options: str, log: Path, environment: Mapping[str, str] = {}
    ) -> None:
        self.log = log
        self.port = free_port()
        command = [str(Path(sys.executable).with_name("vllm")), "serve", str(model)]
        command += ["--served-model-name", "demo", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), *options]
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                command, env={**os.environ, **environment}, stdout=out, stderr=out
            )

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_S
        while self.process.poll() is None and time.monotonic() < deadline:
            if self._is_healthy():
                return
            time.sleep(0.5)
        raise AssertionError(f"no healthy server within {READY_S} s:\n{self.text()[-4000:]}")

    def text(self) -> str:
        """What it has logged so far."""
        return self.log.read_text(errors="replace")

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

    def workers(self) -> list[psutil.Process]:
        """Workers of the DWDP ranks that are here, in the order of their ranks."""
        found = re.findall(r"Worker pid=(\d+)\).*DWDP rank (\d+) of", self.text())
        return [psutil.Process(int(pid)) for pid, _ in sorted(found, key=lambda f: int(f[1]))]

    def pause(self) -> None:
        for process in self.family():
            process.suspend()

    def resume(self) -> None:
        for process in self.family():
            process.resume()

    def stop(self, strike: int = signal.SIGINT) -> int | None:
        """End it; returns its exit code, None when it had to be killed."""
        if self.process.poll() is not None:
            return self.process.returncode
        family = self.family()
        self.process.send_signal(strike)
        gone, left = psutil.wait_procs(family, timeout=STOP_S)
        for process in left:
            process.kill()
        self.process.wait()
        codes = {process.pid: process.returncode for process in gone}
        return None if left else codes[self.process.pid]

    def _is_healthy(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.url}/health", timeout=1)
        except OSError:
            return False
        return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
