# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Serve the demo model on two DWDP ranks, send prompts concurrently, show what each rank did.

The server and the client run in the environment that `environment` builds. The rest of what the
shell exports, such as proxies and options of vLLM, doesn't reach them.
"""

import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from openai import AsyncOpenAI

from vllm_dwdp.engine.setup.local_address import reserved_port
from vllm_dwdp.layout.placement import Placement
from vllm_dwdp.memory.residency import ExpertMap, expert_maps

sys.path.insert(0, str(Path(__file__).parent))  # with -I Python doesn't look there
from serving import MODEL, ROOT, VLLM, environment, running, wait_until_ready

LOG = ROOT / "build" / "quickstart.log"
NUM_RANKS = 2
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
    replaced = environment(os.environ)
    os.environ.clear()
    os.environ.update(replaced)
    with reserved_port() as port, server(port) as process:
        texts = asyncio.run(ask(port))
        for prompt, text in zip(PROMPTS, texts, strict=True):
            print(f"> {prompt}{text}\n")
        print_table(port, process.pid)


@contextmanager
def server(port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run `vllm serve`: it is ready to answer when the block begins, and stopped at its end."""
    options = ["serve", str(MODEL), "--config", str(ROOT / "configs" / "two_ranks.yaml")]
    options += ["--served-model-name", "demo", "--host", "127.0.0.1", "--port", str(port)]
    options += ["--enforce-eager"]  # compiling takes a minute, and fails in a path with spaces
    print(f"Starting vllm {shlex.join(options)}\n(log: {LOG})")
    with running([*VLLM, *options], LOG) as process:
        wait_until_ready(process, port, LOG)
        yield process


async def ask(port: int) -> list[str]:
    """Send all prompts at once, for outputs of unequal length; returns the outputs in order."""
    async with AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as client:
        calls = [
            client.completions.create(model="demo", prompt=p, max_tokens=24 + 8 * i, temperature=0)
            for i, p in enumerate(PROMPTS)
        ]
        return [answer.choices[0].text for answer in await asyncio.gather(*calls)]


def print_table(port: int, pid: int) -> None:
    """Print each rank's requests and tokens, from /metrics, and bytes of experts, from its maps."""
    counts = engine_counts(port)
    workers = [expert_maps(process.pid) for process in psutil.Process(pid).children(recursive=True)]
    held = expert_bytes([maps for maps in workers if maps])
    num_experts = json.loads((MODEL / "config.json").read_text())["num_experts"]
    placement = Placement.make(num_experts=num_experts, dwdp_size=NUM_RANKS)
    print("rank  requests  tokens   experts    resident  from peers")
    for rank in range(NUM_RANKS):
        requests, tokens = (counts[name, rank] for name in ("request_success", "generation_tokens"))
        first, end = placement.ranges[rank]
        print(
            f"{rank:>4} {requests:>9.0f} {tokens:>7.0f} {f'[{first}, {end})':>9} "
            f"{held[rank] / 2**20:>6.1f} MiB {(sum(held) - held[rank]) / 2**20:>7.1f} MiB"
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


def expert_bytes(workers: list[list[ExpertMap]]) -> list[int]:
    """Bytes of each rank's experts. They are in memory once, and every worker maps all of them.

    A worker whose steps copy maps them in two places: on peers' memory, and around its slots.
    """
    found = len(workers)
    assert found == NUM_RANKS, f"expected {NUM_RANKS} workers that map experts, got {found}"
    held = {(m.owner, m.inode, m.offset): m.mapped_bytes for m in workers[0]}
    return [sum(n for (owner, *_), n in held.items() if owner == rank) for rank in range(NUM_RANKS)]


if __name__ == "__main__":
    main()
