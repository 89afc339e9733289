# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Starts and stops servers for the examples, whatever the user's shell exports."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import psutil

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "examples" / "demo_model"
VLLM = (sys.executable, "-I", "-m", "vllm.entrypoints.cli.main")
"""The same as `vllm`, but with -I Python ignores its own variables and packages of the user."""

KEPT = ("PATH", "LD_LIBRARY_PATH", "LANG", "USER", "LOGNAME")
"""Variables of the user's environment that servers and clients get."""
LONGEST_TMPDIR = 60
"""Characters of the longest TMPDIR that is kept. Paths of the sockets in it may have 107."""
START_TIMEOUT_S = 600


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """The environment of servers and clients, out of `given`; caches go below build/."""
    kept = {name: given[name] for name in KEPT if name in given}
    if 0 < len(given.get("TMPDIR", "")) <= LONGEST_TMPDIR:
        kept["TMPDIR"] = given["TMPDIR"]
    home = ROOT / "build" / "home"
    home.mkdir(parents=True, exist_ok=True)
    return {
        **kept,
        "HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }


@contextmanager
def running(
    command: Sequence[str], log: Path, extra: Mapping[str, str] = MappingProxyType({})
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server, and stop it at the end of the block. extra: environment variables."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env={**os.environ, **extra})
    try:
        yield process
    finally:
        stop(process)


def wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Wait until the server answers; ends this program with the end of the log if it doesn't."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
            return
        except OSError:
            time.sleep(0.5)
    end = log.read_text(errors="replace")[-3000:]
    sys.exit(f"the server did not start; the end of {log}:\n{end}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """Send SIGINT, as Ctrl-C would; kill the processes that are left after half a minute."""
    if process.poll() is not None:
        return
    server = psutil.Process(process.pid)
    family = [server, *server.children(recursive=True)]
    process.send_signal(signal.SIGINT)
    _, alive = psutil.wait_procs(family, timeout=30)
    for left in alive:
        left.kill()
    print(f"Stopped; {len(alive)} processes had to be killed.")
