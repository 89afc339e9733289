# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Records steps of running servers, by vLLM's own HTTP endpoint for calls of workers.

vLLM has the endpoint `/collective_rpc` if it was started with VLLM_SERVER_DEV_MODE=1. A server with
several ranks answers for all of them.
"""

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

from vllm_dwdp.trace.errors import NoRecording
from vllm_dwdp.trace.rank_spans import Recording

POLL_S = 0.2
ANSWER_S = 60
NOT_FOUND = 404
LACKS = ("no attribute '{}'", "Method '{}' is not implemented")
"""How vLLM answers a call of a method that its workers lack, by where it looks the method up."""


class TracedServer:
    """One server. url: for example http://localhost:8000. All methods raise NoRecording."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def start(self, num_steps: int) -> None:
        """Have all ranks record so many steps, from the next one on."""
        self._call("dwdp_trace_start", [num_steps])

    def num_steps(self) -> list[int]:
        """The steps that each rank has recorded so far."""
        return [count for (count,) in self._call("dwdp_trace_steps")]

    def take(self) -> list[Recording]:
        """End the recordings of all ranks, and return them."""
        return self._call("dwdp_trace")

    def _call(self, method: str, args: Sequence[Any] = ()) -> list[Any]:
        """The answers of all ranks to a call of a method of their workers."""
        body = json.dumps({"method": method, "args": list(args)}).encode()
        request = urllib.request.Request(
            f"{self.url}/collective_rpc", body, {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
                return list(json.load(answer)["results"])
        except urllib.error.HTTPError as error:
            raise NoRecording(self._refusal(method, error)) from error
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
            reason = getattr(error, "reason", error)
            raise NoRecording(
                f"no vLLM server answers at {self.url}: {reason}; check the address."
            ) from error

    def _refusal(self, method: str, error: urllib.error.HTTPError) -> str:
        if error.code == NOT_FOUND:
            return (
                f"{self.url} has no endpoint /collective_rpc; start the server with "
                "VLLM_SERVER_DEV_MODE=1 in its environment."
            )
        text = error.read().decode(errors="replace")
        if any(lacks.format(method) in text for lacks in LACKS):
            return (
                f"the engine at {self.url} doesn't run dwdp; start it with "
                "--distributed-executor-backend dwdp."
            )
        return f"{self.url} refused to record ({error.code}): {_reason(text)}"


def record(
    servers: Sequence[TracedServer],
    num_steps: int,
    *,
    timeout_s: float,
    report: Callable[[int], None] = lambda num_steps: None,
) -> list[Recording]:
    """Record steps of all ranks of some servers, until all ranks are done or the time is up.

    report: gets the steps of the rank that has fewest. Raises NoRecording, also if no rank has run
    a step.
    """
    for server in servers:
        server.start(num_steps)
    deadline = time.monotonic() + timeout_s
    while (done := min(_steps(servers))) < num_steps and time.monotonic() < deadline:
        report(done)
        time.sleep(POLL_S)
    report(done)
    taken = [recording for server in servers for recording in server.take()]
    if not any(recording["num_steps"] for recording in taken):
        raise NoRecording(
            f"no step ran within {timeout_s:.0f} s; send requests while the trace is recorded. "
            "Steps that replay CUDA graphs aren't recorded."
        )
    return taken


def _steps(servers: Sequence[TracedServer]) -> list[int]:
    return [steps for server in servers for steps in server.num_steps()]


def _reason(text: str) -> str:
    """The message in vLLM's answer to a failed call, or the answer itself."""
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text.strip() or "no reason given"
