# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Asks a probe in a process of its own, so that nothing that hangs or crashes ends the report.

* The child has this process's module path, so that both use the same vllm_dwdp.
* Whatever libraries print goes to the child's standard error; its last line of
  standard output is the answer.
* A child that takes too long is killed with all processes that it started. If the kernel can't end
  it, because a call of a driver doesn't return for example, it is left behind.
"""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
from typing import Any

PROBES = "vllm_dwdp.doctor.probes"
START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from vllm_dwdp.doctor.child import main; main(sys.argv[2], json.loads(sys.argv[3]))"
)
REAP_S = 5.0


class ProbeError(RuntimeError):
    """The probe raised an error or crashed; the message says which."""


class ProbeTimeout(RuntimeError):
    """The probe gave no answer in time."""


def ask(probe: str, *, limit_s: float, is_nested: bool = False, **arguments: Any) -> Any:
    """The JSON value that `look` of a module in doctor/probes returns, in a new process.

    is_nested: the caller is itself such a process, whose end must end this one.
    Raises ProbeError, ProbeTimeout.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", START, json.dumps(sys.path), probe, json.dumps(arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=not is_nested,
    )
    try:
        output, errors = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired as error:
        raise ProbeTimeout(f"no answer within {limit_s:g} s") from error
    finally:
        _end(process, has_own_session=not is_nested)
    if process.returncode:
        raise ProbeError(_how_it_ended(process.returncode, errors))
    return _open(output)


def main(probe: str, arguments: dict[str, Any]) -> None:
    """In the child: print the probe's answer, or its error, as JSON."""
    answer = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        found = {"answer": importlib.import_module(f"{PROBES}.{probe}").look(**arguments)}
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {error}"}
    with open(answer, "w") as out:
        out.write("\n" + json.dumps(found))  # start-up files of Python may have printed before
    sys.stdout.flush()
    os._exit(0)  # threads or libraries that hang at the end don't matter any more


def _open(output: str) -> Any:
    found = json.loads(output.rpartition("\n")[2])
    if "error" in found:
        raise ProbeError(found["error"])
    return found["answer"]


def _end(process: subprocess.Popen[str], *, has_own_session: bool) -> None:
    """Kill a child that hasn't ended, with all that it started, and wait for it for a moment."""
    if process.poll() is not None:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if has_own_session:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=REAP_S)


def _how_it_ended(code: int, errors: str) -> str:
    last = next((line for line in reversed(errors.splitlines()) if line.strip()), "")
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    return f"{how}: {last.strip()}" if last else how
