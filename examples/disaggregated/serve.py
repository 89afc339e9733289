# SPDX-License-Identifier: Apache-2.0
# SPDX-FileCopyrightText: Copyright contributors to the vllm-dwdp project
"""Two DWDP ranks prefill, a stock vLLM server decodes, vLLM's router stands before them.

The KV cache goes from the ranks to the decode server by NIXL. Each rank has a front-end of its own.
For each prompt it prints the text and the rank that prefilled it, and in the end how many bytes of
KV cache were moved. README.md says how the same looks on GPUs.
"""

import argparse
import contextlib
import json
import os
import re
import shlex
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from openai import OpenAI

sys.path.insert(0, str(Path(__file__).parents[1]))  # with -I Python doesn't look there
from serving import MODEL, ROOT, VLLM, environment, running, wait_until_ready

LOGS = ROOT / "build" / "disaggregated"
NUM_RANKS = 2
PROMPTS = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune,",
    "In the beginning God created the heaven and the earth. And the earth was",
    "Emma Woodhouse, handsome, clever, and rich, with a comfortable home and happy disposition,",
    "And the LORD said unto Moses, Go in unto Pharaoh, and tell him, Thus saith the LORD",
)
SIDE_CHANNEL = "VLLM_NIXL_SIDE_CHANNEL_PORT"


class Ports:
    """Ports of one deployment, from the first on. Rank r answers at `ranks` + r."""

    def __init__(self, first: int) -> None:
        self.ranks, self.supervisor = first, first + NUM_RANKS
        self.decode, self.router, self.metrics = first + 3, first + 4, first + 5
        self.rendezvous = first + 6  # and the next one
        self.prefill_channel, self.decode_channel = first + 10, first + 20  # one for each rank


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--first-port", type=int, default=8100)
    ports = Ports(parser.parse_args().first_port)
    replaced = environment(os.environ)
    os.environ.clear()
    os.environ.update(replaced)
    LOGS.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as servers:
        start(servers, ports)
        ask(ports)


def start(servers: contextlib.ExitStack, ports: Ports) -> None:
    """Start all servers; all of them are ready when this returns."""
    ranks = run(servers, "prefill", prefill(ports), {SIDE_CHANNEL: str(ports.prefill_channel)})
    stock = run(servers, "decode", decode(ports), {SIDE_CHANNEL: str(ports.decode_channel)})
    for rank in range(NUM_RANKS):
        wait_until_ready(ranks, ports.ranks + rank, LOGS / "prefill.log")
    wait_until_ready(stock, ports.decode, LOGS / "decode.log")
    wait_until_ready(run(servers, "router", router(ports), {}), ports.router, LOGS / "router.log")


def run(servers, name: str, command: Sequence[str], extra: dict[str, str]):
    shown = ["vllm" if part == VLLM[-1] else part for part in command if part not in VLLM[:-1]]
    said = " ".join(f"{key}={value}" for key, value in extra.items())
    print(f"{said} {shlex.join(shown)}".strip(), f"(log: {LOGS / name}.log)", sep="\n", flush=True)
    return servers.enter_context(running(command, LOGS / f"{name}.log", extra))


def prefill(ports: Ports) -> list[str]:
    """One command starts both ranks and a supervisor; each rank has a port of its own."""
    return [
        *(*VLLM, "serve", str(MODEL), *common("kv_producer")),
        *("--distributed-executor-backend", "dwdp", "--data-parallel-size", str(NUM_RANKS)),
        *("--data-parallel-multi-port-external-lb", "--data-parallel-size-local", str(NUM_RANKS)),
        *("--data-parallel-supervisor-port", str(ports.supervisor)),
        *("--data-parallel-rpc-port", str(ports.rendezvous), "--port", str(ports.ranks)),
    ]


def decode(ports: Ports) -> list[str]:
    return [*VLLM, "serve", str(MODEL), *common("kv_consumer"), "--port", str(ports.decode)]


def common(role: str) -> list[str]:
    transfer = {"kv_connector": "NixlConnector", "kv_role": role, "kv_buffer_device": "cpu"}
    return [
        *("--served-model-name", "demo", "--host", "127.0.0.1", "--max-model-len", "512"),
        *("--enforce-eager", "--kv-transfer-config", json.dumps(transfer)),
    ]


def router(ports: Ports) -> list[str]:
    of_ranks = [("--prefill", url(ports.ranks + rank)) for rank in range(NUM_RANKS)]
    return [
        *(sys.executable, "-I", "-m", "vllm_router.launch_router", "--vllm-pd-disaggregation"),
        *(part for option in of_ranks for part in option),
        *("--decode", url(ports.decode), "--policy", "round_robin"),
        *("--host", "127.0.0.1", "--port", str(ports.router)),
        *("--prometheus-port", str(ports.metrics)),
    ]


def ask(ports: Ports) -> None:
    """Send the prompts one after the other, and print what came of them."""
    with OpenAI(base_url=f"{url(ports.router)}/v1", api_key="none") as client:
        for prompt in PROMPTS:
            before = prefilled(ports)
            answer = client.completions.create(
                model="demo", prompt=prompt, max_tokens=24, temperature=0
            )
            (rank,) = (r for r, n in enumerate(prefilled(ports)) if n > before[r])
            print(f"\n> {prompt}{answer.choices[0].text}\n  prefilled by rank {rank}")
    moved = metric(ports.decode, "vllm:nixl_bytes_transferred_sum")
    print(f"\n{moved / 2**20:.2f} MiB of KV cache moved to the decode server.")


def prefilled(ports: Ports) -> list[float]:
    """How many requests each rank has finished."""
    return [metric(ports.ranks + rank, "vllm:request_success_total") for rank in range(NUM_RANKS)]


def metric(port: int, name: str) -> float:
    """The sum of a metric over all of its labels."""
    with urllib.request.urlopen(f"{url(port)}/metrics", timeout=60) as answer:
        found = re.findall(rf"^{name}(?:\{{.*\}})? (\S+)$", answer.read().decode(), re.M)
    return sum(map(float, found))


def url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


if __name__ == "__main__":
    main()
