# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Starts engine_child.py with a time limit, and ends every process that it leaves."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

CHILD = Path(__file__).with_name("engine_child.py")
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
KILL_S = 0.05


def start(options: dict[str, Any], ranks: int | None, limit_s: float, name: Path) -> dict:
    """Run one job; returns what the child found, or {"error"} if it wrote nothing.

    name: of the child's file and of its log, to which suffixes are added.
    """
    environment = os.environ | ENVIRONMENT | one_core_each(ranks or 1)
    out, log = name.with_suffix(".json"), name.with_suffix(".log")
    out.unlink(missing_ok=True)  # of an earlier run
    job = {"options": options, "ranks": ranks, "out": str(out)}
    with log.open("w") as file, _session(job, environment, file) as process:
        error = _wait(process, limit_s)
    if out.exists():
        return json.loads(out.read_text())
    return {"error": f"{error}: {_last_line(log.read_text(errors='replace'))}"}


def one_core_each(num_engines: int) -> dict[str, str]:
    """A core for each engine: with another number of threads, kernels round sums differently."""
    cores = sorted(os.sched_getaffinity(0))
    chosen = (cores[engine % len(cores)] for engine in range(num_engines))
    return {"VLLM_CPU_OMP_THREADS_BIND": "|".join(map(str, chosen))}


def _last_line(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip()), "no output")


@contextlib.contextmanager
def _session(job: dict, environment: dict[str, str], log: Any) -> Iterator[subprocess.Popen]:
    """The child in a session of its own, in which ranks and engines have groups of their own."""
    process = subprocess.Popen(
        [sys.executable, str(CHILD), json.dumps(job)],
        env=environment,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        _end_session(process.pid)
        process.wait()


def _wait(process: subprocess.Popen, limit_s: float) -> str:
    try:
        return f"exit status {process.wait(timeout=limit_s)}"
    except subprocess.TimeoutExpired:
        return f"no end in {limit_s:.0f} s"


def _end_session(session: int) -> None:
    """Kill all processes of a session, again until none is left that could start another."""
    while members := [process.pid for process in psutil.process_iter() if _is_in(process, session)]:
        for pid in members:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(KILL_S)


def _is_in(process: psutil.Process, session: int) -> bool:
    """Whether a process of the session runs; one that ended, but wasn't waited for, doesn't."""
    try:
        return os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False
