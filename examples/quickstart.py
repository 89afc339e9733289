# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Serve the demo model with two DWDP ranks, send prompts concurrently, show who did what."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from openai import AsyncOpenAI

from vllm_dwdp.memory.residency import expert_maps

ROOT = Path(__file__).resolve().parents[1]
LOG = ROOT / "build" / "quickstart.log"
NUM_RANKS = 2
START_TIMEOUT_S = 600
PROMPTS = (
    "It is a truth universally acknowledged,",
    "In the beginning",
    "Emma was",
    "And the LORD said unto Moses,",
    "My dear Miss Woodhouse, I cannot tell you how happy I am that",
    "She had been",
    "And it came to pass in those days, when they were gone out of the city, that",
    "The carriage",
)
ROW = re.compile(
    r"^vllm:(?P<name>request_success|generation_tokens)_total\{(?P<labels>.*)\} (?P<n>\S+)"
)


def main() -> None:
    port = free_port()
    with server(port) as process:
        texts = asyncio.run(ask(port))
        for prompt, text in zip(PROMPTS, texts, strict=True):
            print(f"> {prompt}{text}\n")
        print_table(port, process.pid)


@contextmanager
def server(port: int) -> Iterator[subprocess.Popen[bytes]]:
    """vllm serve, ready to answer; stopped when the block ends."""
    LOG.parent.mkdir(exist_ok=True)
    command = ["vllm", "serve", str(ROOT / "examples" / "demo_model")]
    command += ["--served-model-name", "demo", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--config", str(ROOT / "configs" / "two_ranks.yaml")]
    print(f"Starting {' '.join(command)}\n(log: {LOG}; a first start compiles for a minute)")
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", **os.environ}
    with LOG.open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        wait_until_ready(process, port)
        yield process
    finally:
        stop(process)


def wait_until_ready(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
            return
        except OSError:
            time.sleep(0.5)
    sys.exit(f"the server did not start; the end of {LOG}:\n{LOG.read_text()[-3000:]}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """SIGINT, as Ctrl-C would; whatever is left after half a minute is killed by its id."""
    if process.poll() is not None:
        return
    server = psutil.Process(process.pid)
    family = [server, *server.children(recursive=True)]
    process.send_signal(signal.SIGINT)
    _, alive = psutil.wait_procs(family, timeout=30)
    for left in alive:
        left.kill()
    print(f"Stopped; {len(alive)} processes had to be killed.")


async def ask(port: int) -> list[str]:
    """All prompts at once, of unequal length."""
    async with AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as client:
        calls = [
            client.completions.create(model="demo", prompt=p, max_tokens=24 + 8 * i, temperature=0)
            for i, p in enumerate(PROMPTS)
        ]
        return [answer.choices[0].text for answer in await asyncio.gather(*calls)]


def print_table(port: int, pid: int) -> None:
    """Requests and tokens from /metrics; experts from the log; bytes from the processes' maps."""
    counts = engine_counts(port)
    owned = dict(re.findall(r"DWDP rank (\d+) of .*?experts (\[\d+, \d+\))", LOG.read_text()))
    held = expert_bytes(pid)
    print("rank  requests  tokens   experts    resident  from peers")
    for rank in range(NUM_RANKS):
        own, peers = held[rank]
        requests, tokens = (counts[name, rank] for name in ("request_success", "generation_tokens"))
        print(
            f"{rank:>4} {requests:>9.0f} {tokens:>7.0f} {owned[str(rank)]:>9} "
            f"{own / 2**20:>6.1f} MiB {peers / 2**20:>7.1f} MiB"
        )


def engine_counts(port: int) -> dict[tuple[str, int], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    counts = {
        (n, r): 0.0 for n in ("request_success", "generation_tokens") for r in range(NUM_RANKS)
    }
    for match in filter(None, map(ROW.match, lines)):
        engine = re.search(r'engine="(\d+)"', match["labels"])
        if engine is not None:
            counts[match["name"], int(engine[1])] += float(match["n"])
    return counts


def expert_bytes(pid: int) -> dict[int, tuple[int, int]]:
    """Per rank: bytes of its own experts in memory, bytes mapped from peers."""
    held = {}
    for process in psutil.Process(pid).children(recursive=True):
        maps = expert_maps(process.pid)
        if maps:
            by_owner = {m.owner: 0 for m in maps}
            for m in maps:
                by_owner[m.owner] += m.mapped_bytes
            held[process.pid] = by_owner
    ranks = rank_of_pid()
    return {
        ranks[p]: (owners[ranks[p]], sum(b for o, b in owners.items() if o != ranks[p]))
        for p, owners in held.items()
    }


def rank_of_pid() -> dict[int, int]:
    return {
        int(pid): int(rank)
        for pid, rank in re.findall(r"pid=(\d+)\).*DWDP rank (\d+) of", LOG.read_text())
    }


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
