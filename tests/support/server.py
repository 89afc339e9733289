# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""A `vllm serve` process and all processes that it started."""

import json
import os
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

import vllm_dwdp.bench.server
from support.hosts import on_host
from vllm_dwdp.bench.errors import BenchError
from vllm_dwdp.bench.ports import free_port

READY_S = 400


class Server(vllm_dwdp.bench.server.Server):
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
        self._host = host
        port = free_port()
        command = [str(Path(sys.executable).with_name("vllm")), "serve", str(model)]
        command += ["--served-model-name", "demo", "--host", "127.0.0.1"]
        command += ["--port", str(port), *options]
        if host is not None:
            command = on_host(host, command)
        super().__init__(command, port=port, log=log, environment={**os.environ, **environment})

    def wait_until_ready(self, seconds: float = READY_S) -> None:
        try:
            super().wait_until_ready(seconds)
        except BenchError as error:
            raise AssertionError(f"{error}\n{self.text()[-2000:]}\n{self._errors()}") from error

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

    def _front_end(self, family: Sequence[psutil.Process]) -> psutil.Process:
        return family[0 if self._host is None else 1]  # there the first one is unshare, which waits

    def _errors(self) -> str:
        """The log lines that name an error; vLLM logs the cause long before its last lines."""
        return "\n".join(line for line in self.text().splitlines() if "Error" in line)[-2000:]
